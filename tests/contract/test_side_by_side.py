# SPDX-License-Identifier: Apache-2.0
"""The kernel in memory beside the real one: the same is done to both, at random.

After each step they must show the same devices and have refused the same things
with the same errno. Where they differ, the one in memory is wrong.

Run as `python -m tests.contract.test_side_by_side EXAMPLES STEPS SEED` it takes
longer, and other ways.
"""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lab import witness
from lab.namespaces import namespaces
from lab.strangers import RealStranger
from lab.witness import Shown
from tapster.errors import KernelError
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.port import LinkChange, Namespace, NewMacvtap
from tapster.model import Link, Mode
from tapster.testing import FakeSystem
from tapster.testing.space import Space

OURS = [(1 << 30) + number for number in range(3)] + [(1 << 31) - 1]
"""Interface indexes as Tapster chooses them; the others are the kernel's."""
NAMES = ["vnet0", "vnet1", "vnet2", "alt"]
TEMPLATE = "vnet%d"
BAD_NAMES = ["a/b", "b r", "all", "x%dy%d", "sixteen-bytes-xx"]
MACS = [f"52:54:00:00:00:0{n}" for n in range(3)] + ["fe:54:00:00:00:01"]

new_ifindex = st.sampled_from([*OURS * 3, *range(1, 12)])
new_name = st.sampled_from([*NAMES * 4, "", *BAD_NAMES])
macs = st.sampled_from(MACS)
mtus = st.sampled_from([67, 68, 576, 1280, 1400, 1500, 9000, 65521, 65522])
changes = st.fixed_dictionaries(
    {},
    optional={
        "mac": macs,
        "mtu": mtus,
        "alias": st.sampled_from(["", "one", "two", "x" * 255, "x" * 256]),
        "no_ipv6": st.just(True),
        "disable_ipv6": st.booleans(),
        "isolated": st.booleans(),
        "up": st.booleans(),
    },
)
"""All of a LinkChange but what depends on the devices there are."""


class SideBySide(RuleBasedStateMachine):
    """Does each step to both, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._stack.enter_context(namespaces())
        self._real: Namespace = LinuxSystem().netns(None)
        self._stack.callback(self._real.close)
        self._others = RealStranger()
        self._stack.callback(self._others.stop)
        self._system = FakeSystem()
        self._fake = self._system.netns(None)
        self._strangers = self._system.stranger()
        self._open: list[tuple[int, int, Callable[[int], None]]] = []
        """What is open really, what is open in memory, and how the latter is closed."""
        self._seen: dict[int, str] | None = None

    def teardown(self) -> None:
        for real, fake, close in self._open:
            os.close(real)
            close(fake)
        self._stack.close()

    @initialize()
    def furnish(self) -> None:
        for bridge in ("br0", "br1"):
            self._strange("add_bridge", bridge)
        self._strange("add_veth", "low", "far")
        self._strange("set_by_name", "low", mac="02:00:00:00:00:99")

    # Ours

    @rule(
        name=new_name,
        ifindex=new_ifindex,
        queues=st.integers(1, 3),
        vnet_hdr=st.booleans(),
    )
    def create_tap(self, name: str, ifindex: int, **options: Any) -> None:
        self._ours("create_tap", name, ifindex, uid=None, gid=None, **options)

    @rule(
        name=new_name,
        ifindex=new_ifindex,
        mode=st.sampled_from([*Mode]),
        mac=st.none() | macs,
        mtu=st.none() | mtus,
        data=st.data(),
    )
    def create_macvtap(
        self, name: str, ifindex: int, data: st.DataObject, **options: Any
    ) -> None:
        lower = data.draw(self._ifindexes())
        device = NewMacvtap(name, ifindex, lower=lower, **options)
        self._ours("create_macvtap", device)

    @rule(queues=st.integers(1, 2), data=st.data())
    def open_macvtap(self, queues: int, data: st.DataObject) -> None:
        ifindex = data.draw(self._ifindexes("macvtap"))
        self._ours("open_macvtap", ifindex, queues=queues, vnet_hdr=True)

    @rule(changes=st.lists(changes, min_size=1, max_size=3), data=st.data())
    def set_links(self, changes: list[dict[str, Any]], data: st.DataObject) -> None:
        made = [LinkChange(data.draw(self._ifindexes()), **one) for one in changes]
        self._ours("set_links", made)

    @rule(up=st.none() | st.booleans(), alone=st.booleans(), data=st.data())
    def set_master(self, up: bool | None, alone: bool, data: st.DataObject) -> None:
        ifindex = data.draw(self._ifindexes())
        master = data.draw(st.just(0) | self._ifindexes("bridge"))
        isolated = None if alone else True
        change = LinkChange(ifindex, master=master, isolated=isolated, up=up)
        self._ours("set_links", [change])

    @rule(count=st.integers(0, 3), data=st.data())
    def delete_links(self, count: int, data: st.DataObject) -> None:
        gone = [data.draw(self._ifindexes()) for _ in range(count)]
        self._ours("delete_links", gone)

    @rule(forget=st.booleans())
    def changed_links(self, forget: bool) -> None:
        """What got or lost a name is in both answers; more may be.

        Not an altname: of a device that is down the kernel tells nobody.
        """
        if forget:
            self._ours("forget_changes")
            self._seen = None
        real, fake = self._real.changed_links(), self._fake.changed_links()
        before, self._seen = self._seen, self._named()
        if before is None:
            assert real is fake is None
            return
        assert real is not None
        assert fake is not None
        both = before.keys() | self._seen.keys()
        renamed = {one for one in both if before.get(one) != self._seen.get(one)}
        assert renamed <= real
        assert renamed <= fake

    @precondition(lambda self: self._open)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self._open) - 1))
        real, fake, close = self._open.pop(which)
        os.close(real)
        close(fake)

    # Everybody else's

    @rule(
        name=st.sampled_from([*NAMES, TEMPLATE]),
        exclusive=st.booleans(),
        multi_queue=st.booleans(),
    )
    def add_tap(self, name: str, **options: Any) -> None:
        self._strange("add_tap", name, **options)

    @rule(exclusive=st.booleans(), multi_queue=st.booleans(), data=st.data())
    def open_tap(self, data: st.DataObject, **options: Any) -> None:
        name = data.draw(st.just(TEMPLATE) | self._names())
        self._strange("open_tap", name, **options)

    @rule(
        name=st.sampled_from(NAMES),
        mode=st.sampled_from([*Mode]),
        mac=st.none() | macs,
        data=st.data(),
    )
    def add_macvtap(self, name: str, data: st.DataObject, **options: Any) -> None:
        self._strange("add_macvtap", name, data.draw(self._names()), **options)

    @rule(
        options=st.fixed_dictionaries(
            {},
            optional={
                "up": st.booleans(),
                "alias": st.sampled_from(["", "one"]),
                "mac": macs,
                "mtu": mtus,
                "group": st.integers(0, 2),
            },
        ),
        data=st.data(),
    )
    def set_by_name(self, options: dict[str, Any], data: st.DataObject) -> None:
        name = data.draw(self._names())
        master = data.draw(st.none() | st.sampled_from(["", "br0", "br1", "low"]))
        self._strange("set_by_name", name, master=master, **options)

    @rule(to=new_name | st.just(TEMPLATE), data=st.data())
    def rename(self, to: str, data: st.DataObject) -> None:
        self._strange("rename", data.draw(self._names()), to)

    @rule(altname=st.sampled_from([*NAMES, "br0", "far"]), data=st.data())
    def add_altname(self, altname: str, data: st.DataObject) -> None:
        self._strange("add_altname", data.draw(self._names()), altname)

    @rule(data=st.data())
    def del_altname(self, data: st.DataObject) -> None:
        name, altname = data.draw(self._names()), data.draw(self._names())
        self._strange("del_altname", name, altname)

    @rule(data=st.data())
    def delete_by_name(self, data: st.DataObject) -> None:
        self._strange("delete_by_name", data.draw(self._names()))

    @rule(data=st.data())
    def delete_by_ifindex(self, data: st.DataObject) -> None:
        self._strange("delete_by_ifindex", data.draw(self._ifindexes()))

    # Choosing

    def _ifindexes(self, kind: str | None = None) -> st.SearchStrategy[int]:
        """Mostly of a device that there is, of this kind if one is given."""
        devices = self._space.devices.values()
        found = [one.ifindex for one in devices if kind in (None, one.kind)]
        return st.sampled_from([*found * 3, *self._space.devices, 99])

    def _names(self) -> st.SearchStrategy[str]:
        """Mostly a name that some device has."""
        return st.sampled_from([*self._space.names, *self._space.names, *NAMES])

    @property
    def _space(self) -> Space:
        world = self._system.looked_at()
        return world.spaces[world.own]

    # Comparing

    @invariant()
    def they_show_the_same(self) -> None:
        self._share_macs()
        inside, outside = witness.in_memory(self._space), witness.by_ip()
        assert inside == outside, _differences(inside, outside)
        for name in {*self._space.names, *NAMES, *BAD_NAMES[-1:]}:
            self._ours("ifindex", name)
        links = self._real.links()
        assert _steady(self._fake.links()) == _steady(links)
        for link in links:
            same = self._fake.link(link.ifindex)
            assert same is not None
            assert _steady([same]) == _steady([link])
            if link.kind == "bridge":
                self._ours("ports", link)

    def _share_macs(self) -> None:
        """Give a device in memory the MAC that the kernel has made up for it."""
        space = self._space
        for link in self._real.links():
            device = space.devices.get(link.ifindex)
            if device and device.mac.startswith("02:00:") and link.mac not in MACS:
                space.devices[link.ifindex] = device._replace(mac=link.mac)

    def _named(self) -> dict[int, str]:
        return {link.ifindex: link.name for link in self._real.links()}

    def _ours(self, verb: str, *args: Any, **options: Any) -> None:
        real = _outcome(getattr(self._real, verb), *args, **options)
        fake = _outcome(getattr(self._fake, verb), *args, **options)
        if isinstance(real, tuple):
            assert len(fake) == len(real)
            self._open += [(*pair, os.close) for pair in zip(real, fake, strict=True)]
        else:
            assert fake == real, (fake, real)

    def _strange(self, verb: str, *args: Any, **options: Any) -> None:
        real = _outcome(getattr(self._others, verb), *args, **options)
        fake = _outcome(getattr(self._strangers, verb), *args, **options)
        if isinstance(real, int):
            assert isinstance(fake, int), fake
            self._open.append((real, fake, self._strangers.close))
        else:
            assert fake == real, (fake, real)


def _outcome(verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a verb returns, or the errno that it fails with."""
    try:
        return verb(*args, **options)
    except (KernelError, OSError) as error:
        return f"errno {error.errno}"


def _steady(links: list[Link]) -> list[Link]:
    """Links without what comes only after a while: another's carrier, and then the
    state of its port."""
    links = [link._replace(forwarding=False, blocked=False) for link in links]
    return [
        link if link.kind == "tun" else link._replace(carrier=link.up) for link in links
    ]


def _differences(
    fake: dict[str, Shown], real: dict[str, Shown]
) -> list[tuple[Shown | None, Shown | None]]:
    return [
        (fake.get(name), real.get(name))
        for name in fake.keys() | real.keys()
        if fake.get(name) != real.get(name)
    ]


def run(examples: int, steps: int, **more: Any) -> None:
    """Run so many examples of at most so many steps each."""
    how = settings(
        max_examples=examples,
        stateful_step_count=steps,
        phases=[Phase.generate],  # making a failure smaller takes minutes
        deadline=None,
        database=None,
        suppress_health_check=[*HealthCheck],
        **more,
    )
    run_state_machine_as_test(SideBySide, settings=how)


@pytest.mark.kernel
def test_random_operations_have_the_same_effect_on_the_fake_and_the_kernel() -> None:
    run(40, 30, derandomize=True)


if __name__ == "__main__":
    examples, steps, number = map(int, sys.argv[1:])
    seed(number)(SideBySide)
    run(examples, steps)
