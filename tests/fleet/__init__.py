# SPDX-License-Identifier: Apache-2.0
"""Tests of the fleet: its rules, its stores, its hosts, and a real etcd."""
