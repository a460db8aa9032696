# SPDX-License-Identifier: Apache-2.0
"""Messages and types between the daemon and its clients."""
