# SPDX-License-Identifier: Apache-2.0
"""What acquire promises: wholly configured devices, or nothing."""
