# SPDX-License-Identifier: Apache-2.0
"""A fleet for tests: a real etcd, hosts that a switch joins, a guest that moves."""
