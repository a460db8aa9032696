# SPDX-License-Identifier: Apache-2.0
"""Tests that start hosts of the lab, take their power away, and join them."""
