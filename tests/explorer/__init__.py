# SPDX-License-Identifier: Apache-2.0
"""Tests of the explorer, and what it says of Tapster."""
