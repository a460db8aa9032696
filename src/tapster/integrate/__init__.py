# SPDX-License-Identifier: Apache-2.0
"""What makes other programs use Tapster without being changed."""
