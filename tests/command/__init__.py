# SPDX-License-Identifier: Apache-2.0
"""The command, as its users run it."""
