# SPDX-License-Identifier: Apache-2.0
"""One contract for the port, kept by the real kernel and by the one in memory."""
