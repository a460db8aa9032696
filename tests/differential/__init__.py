# SPDX-License-Identifier: Apache-2.0
"""Random walks of two Hosts and strangers, compared with an independent model."""
