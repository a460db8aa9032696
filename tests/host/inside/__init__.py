# SPDX-License-Identifier: Apache-2.0
"""Tests that run on a host of the lab, under its systemd and udev."""
