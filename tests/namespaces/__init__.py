# SPDX-License-Identifier: Apache-2.0
"""Leases in other network namespaces."""
