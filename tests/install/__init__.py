# SPDX-License-Identifier: Apache-2.0
"""What an installation places, and what it leaves."""
