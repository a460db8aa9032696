# SPDX-License-Identifier: Apache-2.0
"""Install the files that a host needs."""
