# SPDX-License-Identifier: Apache-2.0
"""What a change of a live lease promises."""
