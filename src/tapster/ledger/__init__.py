# SPDX-License-Identifier: Apache-2.0
"""The durable record of who owns which device, in one SQLite file.

`transactions` is the door: each of its methods is one transaction. The other
files hold what such a transaction is made of, one table or concern each.
"""

from tapster.ledger.leases import Reservation
from tapster.ledger.settings import FIRST_IFINDEX, LAST_IFINDEX
from tapster.ledger.transactions import DEFAULT_PATH, Clock, Ledger

__all__ = [
    "DEFAULT_PATH",
    "FIRST_IFINDEX",
    "LAST_IFINDEX",
    "Clock",
    "Ledger",
    "Reservation",
]
