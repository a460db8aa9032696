# SPDX-License-Identifier: Apache-2.0
"""The only room that makes system calls on behalf of devices."""
