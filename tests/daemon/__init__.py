# SPDX-License-Identifier: Apache-2.0
"""tapsterd, as its callers see it."""
