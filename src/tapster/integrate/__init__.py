# SPDX-License-Identifier: Apache-2.0
"""Stand-ins that let other programs use Tapster unchanged."""
