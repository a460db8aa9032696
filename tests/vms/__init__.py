# SPDX-License-Identifier: Apache-2.0
"""Real VMs on leased devices."""
