# SPDX-License-Identifier: Apache-2.0
"""A whole Debian host: tests inside one, and tests that start and end hosts."""
