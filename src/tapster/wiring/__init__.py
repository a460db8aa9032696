# SPDX-License-Identifier: Apache-2.0
"""What connects a device: one file a plane.

Each resolves and checks what a request names before anything is made, says
which changes put a device up, and which take it off again, by ifindex.
"""
