# SPDX-License-Identifier: Apache-2.0
"""The backends, on the real services that keep them."""
