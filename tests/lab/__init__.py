# SPDX-License-Identifier: Apache-2.0
"""The lab itself: what all other tests stand on."""
