# SPDX-License-Identifier: Apache-2.0
"""The planes, on the real services that keep them."""
