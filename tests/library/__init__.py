# SPDX-License-Identifier: Apache-2.0
"""What a user of the library sees."""
