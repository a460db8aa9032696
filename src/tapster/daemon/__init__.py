# SPDX-License-Identifier: Apache-2.0
"""tapsterd: Tapster for callers that have no privileges.

One thread serves the sockets and never waits (`server`). Another thread works on the
devices, one request after the other (`worker`, `service`). Pure code (`policy`) decides
what a caller may do, from the rules in a file (`config`). `links` and `processes`
report changed devices and ended processes to `upkeep`.
"""
