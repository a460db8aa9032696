# SPDX-License-Identifier: Apache-2.0
"""Runs the real steps of a fleet through every order of events.

Hosts, an HA tool and a clone act on a store in memory. A commit is answered at once,
or its sender gives up: then the store may apply it at any later time, or never. A
process can die at each step of an operation. Hosts die and come back.

Two things must hold. No VM is given a MAC by the store while another VM runs with
that MAC. And whenever every request has arrived and every host has pushed what its
ledger says, the store says where each VM runs.

The actors of `scenarios` are short scripts that are interleaved in all ways.
`variants` are wrong versions of the rules: the search must find what each breaks.
"""
