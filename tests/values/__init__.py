# SPDX-License-Identifier: Apache-2.0
"""Requests, names, MAC addresses, stamps and errors: plain values."""
