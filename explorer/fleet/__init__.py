# SPDX-License-Identifier: Apache-2.0
"""Runs the real steps of a fleet through every order of events.

Hosts, an HA tool and a clone use a store in memory. The store answers a commit at once,
or the sender gives up: then the store may apply the commit at any later time, or never.
A process can die at each step of an operation. Hosts die and restart.

Two promises must hold. The store gives no VM a MAC while another VM runs with that MAC.
And whenever every request has arrived and every host has pushed the content of its
ledger, the store says where each VM runs.

The actors of `scenarios` are short scripts, which are interleaved in every way. Each of
`variants` is a known fault: the search must find the promise that it breaks.
"""
