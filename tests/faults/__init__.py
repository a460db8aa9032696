# SPDX-License-Identifier: Apache-2.0
"""Tests that let the host refuse something, and look at what is left."""
