# SPDX-License-Identifier: Apache-2.0
"""What Tapster does with leases: one operation in each file."""
