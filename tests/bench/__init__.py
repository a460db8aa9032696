# SPDX-License-Identifier: Apache-2.0
"""That the bench measures what it says. Never a time."""
