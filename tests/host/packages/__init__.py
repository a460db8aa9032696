# SPDX-License-Identifier: Apache-2.0
"""Tests of installations on a host of the lab, from the package to its purge."""
