# SPDX-License-Identifier: Apache-2.0
"""The wire protocol between the daemon and its clients."""
