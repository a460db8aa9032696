# SPDX-License-Identifier: Apache-2.0
"""The tests, by what they need: see CONTRIBUTING.md."""
