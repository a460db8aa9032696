# SPDX-License-Identifier: Apache-2.0
"""tapsterd: Tapster for callers that have no privileges.

One thread serves the sockets and never waits (`server`); another works on the
devices, one request after the other (`worker`, `service`). What a caller may do is
decided by pure code (`policy`) from a file (`config`). `watcher` says what others do
to our devices, and when a lease's owner ends.
"""
