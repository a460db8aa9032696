# SPDX-License-Identifier: Apache-2.0
"""The methods of the interface, one group of methods in each file."""
