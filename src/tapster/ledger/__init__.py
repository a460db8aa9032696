# SPDX-License-Identifier: Apache-2.0
"""The durable record of who owns which device, in one SQLite file."""
