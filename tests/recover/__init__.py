# SPDX-License-Identifier: Apache-2.0
"""What recover decides and does."""
