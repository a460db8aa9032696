# SPDX-License-Identifier: Apache-2.0
"""Which files a host needs, and how they get there."""
