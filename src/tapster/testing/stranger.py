# SPDX-License-Identifier: Apache-2.0
"""Other programs on the host, and people with `ip`.

If the kernel would refuse a call, OSError is raised. These programs have no real
descriptors: `open_tap` returns a handle, which `close` closes.
"""

from collections.abc import Callable
from errno import EEXIST, ENODEV

from tapster.kernel.port import LinkChange, NewMacvtap
from tapster.model import Mode
from tapster.testing.space import FakeDevice, Space, refusal
from tapster.testing.world import World


class Stranger:
    """Other programs in one namespace."""

    def __init__(self, look: Callable[[], World], cookie: int) -> None:
        self._look = look
        self._cookie = cookie

    # Looking

    def show(self, name: str) -> FakeDevice | None:
        """Return the device that has `name` as name or altname."""
        return self._space.find(name)

    def carrier(self, name: str) -> bool:
        """Return whether LOWER_UP is shown of a device."""
        return self._space.carrier(self._named(name))

    def names(self) -> set[str]:
        """Return every name and altname."""
        return set(self._space.names)

    # Making

    def add_bridge(
        self, name: str, *, mac: str | None = None, vlan_filtering: bool = False
    ) -> None:
        """Add a bridge that is up."""
        made = self._space.register(
            name, "bridge", up=True, vlan_filtering=vlan_filtering
        )
        if mac is not None:
            self._space.change(LinkChange(made.ifindex, mac=mac))

    def filter_vlans(self, name: str, on: bool) -> None:
        """As `ip link set NAME type bridge vlan_filtering`."""
        self._space.edit(self._named(name).ifindex, vlan_filtering=on)

    def add_veth(self, name: str, peer: str) -> None:
        """Add the two ends of a cable, up: a macvtap can sit on either."""
        space = self._space
        for end in (name, peer):
            if end in space.names:
                raise refusal(EEXIST)
        other = space.register(peer, "veth", up=True)
        this = space.register(name, "veth", up=True, peer=other.ifindex)
        space.edit(other.ifindex, peer=this.ifindex)

    def add_tap(
        self, name: str, *, exclusive: bool = True, multi_queue: bool = False
    ) -> str:
        """Add a persistent tap as `ip tuntap add` does; no process has it open. Return
        its name.

        `name` may be a template. Without `exclusive` the kernel hands over an idle tap
        of that name, whichever program made it.
        """
        opened = self.open_tap(name, exclusive=exclusive, multi_queue=multi_queue)
        tap = self._space.attached(opened)
        self._space.edit(tap.ifindex, persist=True)
        self.close(opened)
        return tap.name

    def open_tap(
        self, name: str, *, exclusive: bool = False, multi_queue: bool = False
    ) -> int:
        """Open a tap, or make a tap that goes with its last handle. Return the
        handle."""
        world = self._look()
        handle = world.open(self._cookie)
        try:
            self._space.attach(
                handle,
                name,
                exclusive=exclusive,
                multi_queue=multi_queue,
                vnet_hdr=False,
            )
        except OSError:
            world.close(handle)
            raise
        return handle

    def close(self, handle: int) -> None:
        self._look().close(handle)

    def add_macvtap(
        self, name: str, lower: str, *, mode: Mode = Mode.VEPA, mac: str | None = None
    ) -> None:
        """As `ip link add link LOWER name NAME type macvtap`."""
        under = self._named(lower).ifindex
        self._space.add_macvtap(NewMacvtap(name, 0, under, mode, mac=mac))

    # Changing a device by its present name

    def set_by_name(
        self,
        name: str,
        *,
        master: str | None = None,
        up: bool | None = None,
        alias: str | None = None,
        mac: str | None = None,
        mtu: int | None = None,
        mode: Mode | None = None,
        group: int | None = None,
    ) -> None:
        """As `ip link set`; master "" is `nomaster`."""
        ifindex = self._named(name).ifindex
        if group is not None:
            self._space.edit(ifindex, group=group)
        to = None if master is None else self._named(master).ifindex if master else 0
        change = LinkChange(
            ifindex, mac=mac, mtu=mtu, mode=mode, alias=alias, master=to, up=up
        )
        self._space.change(change)

    def rename(self, name: str, to: str) -> None:
        self._space.rename(self._named(name).ifindex, to)

    def add_altname(self, name: str, altname: str) -> None:
        self._space.add_altname(self._named(name).ifindex, altname)

    def del_altname(self, name: str, altname: str) -> None:
        self._space.del_altname(self._named(name).ifindex, altname)

    def delete_by_name(self, name: str) -> None:
        self._space.delete(self._named(name).ifindex)

    def delete_by_ifindex(self, ifindex: int) -> None:
        self._space.delete(ifindex)

    @property
    def _space(self) -> Space:
        return self._look().spaces[self._cookie]

    def _named(self, name: str) -> FakeDevice:
        if device := self._space.find(name):
            return device
        raise refusal(ENODEV)
