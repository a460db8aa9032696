# SPDX-License-Identifier: Apache-2.0
"""What tests, soak, bench and demo share: namespaces, VMs, daemons, frames, tools."""
