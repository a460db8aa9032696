# SPDX-License-Identifier: Apache-2.0
"""Tests that kill a process between two steps, and look at what is left."""
