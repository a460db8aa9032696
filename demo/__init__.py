# SPDX-License-Identifier: Apache-2.0
"""A laboratory with real VMs, and the race that Tapster ends, shown in it."""
