# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin `tapster-cni`: devices for VMs that run in pods."""
