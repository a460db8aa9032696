# SPDX-License-Identifier: Apache-2.0
"""What two Hosts and strangers should do: dictionaries, and loops over numbers.

It shares no code with Tapster: names are searched one by one, and nothing is stored
but what the answers so far say.
"""

from dataclasses import dataclass, field

CAPACITY = {"vnet%d": 1000, "v%d": 1000, "abcdefghijklmn%d": 10, "ci%d-a": 1000}
"""Templates, and how many names of each the walk needs at most. The third has ten
names in all: a name has 15 characters at most."""


@dataclass
class Modelled:
    """A lease."""

    name: str
    owner: str
    bridge: str
    fin_wait: float
    active: bool = True
    device: bool = True
    """Whether its device, or a placeholder, exists."""
    sound: bool = True
    """Whether its device is up and on its bridge."""


class Refused(Exception):
    """The Hosts should refuse this; the argument is the class of their error."""


@dataclass
class Model:
    """The host: leases by id, and the names of foreign devices."""

    leases: dict[str, Modelled] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    counters: dict[str, int] = field(default_factory=dict)
    stable: dict[tuple[str, str], str] = field(default_factory=dict)

    def taken(self) -> set[str]:
        return {lease.name for lease in self.leases.values()} | self.foreign

    def lowest(self, template: str, more: set[str]) -> str:
        """Return the name that `lowest` should give; `more` are taken, too."""
        taken = self.taken() | more
        for number in range(CAPACITY[template]):
            if (name := template.replace("%d", str(number))) not in taken:
                return name
        raise Refused("NamesExhausted")

    def next(self, template: str, more: set[str]) -> str:
        """Return the name that `next` should give, without counting."""
        taken = self.taken() | more
        capacity = CAPACITY[template]
        first = self.counters.get(template, 0)
        for step in range(capacity):
            number = (first + step) % capacity
            if (name := template.replace("%d", str(number))) not in taken:
                return name
        raise Refused("NamesExhausted")

    def count(self, template: str, name: str) -> None:
        """Move the counter of `next` behind a name that it gave."""
        before, after = template.split("%d")
        number = int(name.removeprefix(before).removesuffix(after))
        self.counters[template] = (number + 1) % CAPACITY[template]

    def fixed(self, name: str, more: set[str]) -> str:
        if name in self.taken() | more:
            raise Refused("NameTaken")
        return name

    def release(self, id: str) -> None:
        """Begin the FIN WAIT of a lease, or end it if it has none."""
        lease = self.leases[id]
        if lease.fin_wait == 0:
            del self.leases[id]
            return
        lease.active = False
        lease.sound = True
        self.hold(lease)

    def hold(self, lease: Modelled) -> bool:
        """Let a placeholder hold the name of a device that is gone, if it is free.

        Return whether the name is held now.
        """
        lease.device = lease.device or lease.name not in self.foreign
        return lease.device

    def reap(self) -> int:
        """End every FIN WAIT; return how many."""
        waiting = [id for id, lease in self.leases.items() if not lease.active]
        for id in waiting:
            del self.leases[id]
        return len(waiting)

    def recover(self) -> set[str]:
        """Repair all; return the ids of the leases that needed it."""
        repaired = set()
        for id, lease in [*self.leases.items()]:
            if lease.active and not lease.device:
                repaired.add(id)
                self.release(id)
            elif lease.active and not lease.sound:
                repaired.add(id)
                lease.sound = True
            elif not lease.active and not lease.device and self.hold(lease):
                repaired.add(id)
        return repaired
