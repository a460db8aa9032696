# SPDX-License-Identifier: Apache-2.0
"""libvirt's domains on devices that Tapster makes."""
