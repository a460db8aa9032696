# SPDX-License-Identifier: Apache-2.0
"""Tests that run domains of Debian's own libvirt on hosts of the lab."""
