# SPDX-License-Identifier: Apache-2.0
"""The kernel in memory beside the real one: the same is done to both, at random.

After each step they must show the same devices and have refused the same things
with the same errno. Where they differ, the one in memory is wrong.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from demo.private import namespaces
from tapster.errors import KernelError
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.port import Kernel, LinkChange
from tapster.model import Link, Mode
from tapster.testing import FakeSystem
from tests.contract import witness
from tests.contract.strangers import RealStranger
from tests.contract.witness import Shown

OURS = [1 << 30, (1 << 30) + 1, (1 << 30) + 2, (1 << 31) - 1]
"""Interface indexes as Tapster chooses them."""
SMALL = [*range(1, 16)]
"""Those that the kernel gives by itself."""
FIXED = ["br0", "br1", "low", "far"]
NAMES = ["vnet0", "vnet1", "vnet2", "alt"]
TEMPLATES = ["vnet%d", "", "a/b", "all", "x%dy%d", "b r", "sixteen-bytes-xx"]
MACS = [f"52:54:00:00:00:0{n}" for n in range(3)] + ["fe:54:00:00:00:01"]

ours = st.sampled_from(OURS)
anything = st.sampled_from(OURS + SMALL)
names = st.sampled_from(NAMES)
every_name = st.sampled_from(NAMES + FIXED)
new_name = st.sampled_from(NAMES * 2 + TEMPLATES[1:])
strange_name = st.sampled_from(NAMES + TEMPLATES[:1])
maybe = st.none() | st.booleans()
macs = st.sampled_from(MACS)
mtus = st.sampled_from([67, 68, 576, 1280, 1400, 1500, 9000, 65521, 65522])
masters = st.sampled_from([0, *SMALL[1:5], *OURS[:2], 99])
changes = st.builds(
    LinkChange,
    anything,
    mac=st.none() | macs,
    mtu=st.none() | mtus,
    alias=st.sampled_from([None, "", "one", "two", "x" * 255, "x" * 256]),
    no_ipv6=st.sampled_from([None, True]),
    master=st.none() | masters,
    isolated=maybe,
    up=maybe,
)


class SideBySide(RuleBasedStateMachine):
    """Does each step to both, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._stack.enter_context(namespaces())
        self._real: Kernel = LinuxSystem().netns(None)
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

    @rule(name=new_name, ifindex=anything, queues=st.integers(1, 3), hdr=st.booleans())
    def create_tap(self, name: str, ifindex: int, queues: int, hdr: bool) -> None:
        options = {"queues": queues, "vnet_hdr": hdr, "uid": None, "gid": None}
        self._ours("create_tap", name, ifindex, **options)

    @rule(
        name=new_name,
        ifindex=anything,
        lower=st.sampled_from([*SMALL[:6], *OURS[:2], 99]),
        mode=st.sampled_from(Mode),
        mac=st.none() | macs,
        mtu=st.none() | mtus,
    )
    def create_macvtap(self, name: str, ifindex: int, **options: Any) -> None:
        self._ours("create_macvtap", name, ifindex, queues=1, **options)

    @rule(ifindex=anything, queues=st.integers(1, 2))
    def open_macvtap(self, ifindex: int, queues: int) -> None:
        self._ours("open_macvtap", ifindex, queues=queues, vnet_hdr=True)

    @rule(changes=st.lists(changes, min_size=1, max_size=3))
    def set_links(self, changes: list[LinkChange]) -> None:
        self._ours("set_links", changes)

    @rule(ifindexes=st.lists(anything, max_size=3))
    def delete_links(self, ifindexes: list[int]) -> None:
        self._ours("delete_links", ifindexes)

    @rule()
    def forget_changes(self) -> None:
        self._ours("forget_changes")
        self._seen = None

    @rule()
    def changed_links(self) -> None:
        """What got or lost a name is in both answers; more may be.

        Not an altname: of a device that is down the kernel tells nobody.
        """
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

    @rule(name=strange_name, exclusive=st.booleans(), multi_queue=st.booleans())
    def add_tap(self, name: str, **options: Any) -> None:
        self._strange("add_tap", name, **options)

    @rule(name=strange_name | every_name, exclusive=st.booleans(), multi=st.booleans())
    def open_tap(self, name: str, exclusive: bool, multi: bool) -> None:
        options = {"exclusive": exclusive, "multi_queue": multi}
        self._strange("open_tap", name, **options)

    @rule(
        name=names,
        lower=st.sampled_from(["low", "far", "br0", "vnet0"]),
        mode=st.sampled_from(Mode),
        mac=st.none() | macs,
    )
    def add_macvtap(self, name: str, lower: str, **options: Any) -> None:
        self._strange("add_macvtap", name, lower, **options)

    @rule(
        name=every_name,
        options=st.fixed_dictionaries(
            {},
            optional={
                "master": st.sampled_from(["", "br0", "br1", "vnet0", "low"]),
                "up": st.booleans(),
                "alias": st.sampled_from(["", "one"]),
                "mac": macs,
                "mtu": mtus,
                "group": st.integers(0, 2),
            },
        ),
    )
    def set_by_name(self, name: str, options: dict[str, Any]) -> None:
        self._strange("set_by_name", name, **options)

    @rule(name=every_name, to=new_name | strange_name)
    def rename(self, name: str, to: str) -> None:
        self._strange("rename", name, to)

    @rule(name=every_name, altname=every_name)
    def add_altname(self, name: str, altname: str) -> None:
        self._strange("add_altname", name, altname)

    @rule(name=every_name, altname=every_name)
    def del_altname(self, name: str, altname: str) -> None:
        self._strange("del_altname", name, altname)

    @rule(name=names)
    def delete_by_name(self, name: str) -> None:
        self._strange("delete_by_name", name)

    @rule(ifindex=anything)
    def delete_by_ifindex(self, ifindex: int) -> None:
        self._strange("delete_by_ifindex", ifindex)

    # Comparing

    @invariant()
    def they_show_the_same(self) -> None:
        self._share_macs()
        world = self._system.looked_at()
        inside, outside = witness.in_memory(world.spaces[world.own]), witness.by_ip()
        assert inside == outside, _differences(inside, outside)
        for name in [*NAMES, *FIXED, "sixteen-bytes-xx"]:
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
        space = self._system.world.spaces[self._system.world.own]
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
    """Links without what comes only after a while: another's carrier."""
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


@pytest.mark.kernel
def test_side_by_side() -> None:
    run_state_machine_as_test(
        SideBySide,
        settings=settings(
            derandomize=True,
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[*HealthCheck],
        ),
    )
