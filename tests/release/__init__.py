# SPDX-License-Identifier: Apache-2.0
"""What release promises: no late cleanup hits the next VM."""
