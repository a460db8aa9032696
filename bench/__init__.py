# SPDX-License-Identifier: Apache-2.0
"""Side-by-side measurements: each prints ratios within one run."""
