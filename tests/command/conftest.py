# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the command."""

from lab.openvswitch import switch

__all__ = ["switch"]
