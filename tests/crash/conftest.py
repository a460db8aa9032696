# SPDX-License-Identifier: Apache-2.0
"""As for the other kernel tests: each in a network and a mount namespace of its own."""

from tests.kernel.conftest import ledger, world

__all__ = ["ledger", "world"]
