# SPDX-License-Identifier: Apache-2.0
"""Share MAC addresses and an inventory between hosts, through etcd.

The ledger of a host stays the only authority over the devices of that host. The store
(etcd) holds MAC registrations: which VM has a MAC, on which host. Hosts push the state
of their ledgers and compare it with the store. No operation on a device waits for the
store longer than a set time, and nothing that runs is undone by it.

`registration` and `keys` are the pure rules. `steps` are the operations as generators
that ask for reads and commits, so that tests can answer late, never, or with a failure.
`store` is the interface of a store; `memory` and `etcd` are the two stores. `book` is
the part of the ledger that remembers registrations. `member` brings them together.

Only a host that has joined a fleet imports this package.
"""
