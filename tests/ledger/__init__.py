# SPDX-License-Identifier: Apache-2.0
"""The file of leases, and the names that requests get."""
