# SPDX-License-Identifier: Apache-2.0
"""What a watch reports of links, processes and namespaces."""

import os
import select

from lab.fake_and_real import ContractLab
from tapster.kernel.port import HERE, LinkChange, Watch
from tapster.model import Link

FIRST = 1 << 30


def links_of(watch: Watch) -> dict[int, dict[int, Link | None]]:
    """The last report of each link, by namespace and ifindex."""
    changes = watch.changes()
    assert changes is not None
    return {
        number: {ifindex: decode and decode() for ifindex, decode in links.items()}
        for number, links in changes.links.items()
    }


def test_a_watch_reports_each_link_as_it_was_last(lab: ContractLab) -> None:
    namespace = lab.system.netns(None)
    watch = lab.system.watch(first=FIRST)
    for number in (1, 2):
        fds = namespace.create_tap(
            f"vnet{number}",
            FIRST + number,
            queues=1,
            vnet_hdr=True,
            uid=None,
            gid=None,
        )
        os.close(fds[0])
    namespace.set_links(
        [LinkChange(FIRST + 1, alias="a"), LinkChange(FIRST + 1, mtu=1400)]
    )
    namespace.delete_links([FIRST + 2])
    seen = links_of(watch)[HERE]
    assert seen[FIRST + 1] == namespace.link(FIRST + 1)
    assert seen[FIRST + 2] is None
    assert links_of(watch) == {}
    watch.close()
    namespace.close()


def test_a_watch_leaves_out_links_below_the_first_ifindex(lab: ContractLab) -> None:
    watch = lab.system.watch(first=FIRST)
    lab.others().add_bridge("br0")
    assert links_of(watch) == {}
    watch.close()


def test_a_watch_elsewhere_reports_numbered_namespaces_alone(lab: ContractLab) -> None:
    lab.add_netns("blue")
    lab.add_netns("red")
    here, blue = lab.system.netns(None), lab.system.netns("blue")
    watch = lab.system.watch(first=FIRST, elsewhere=True)
    number = here.number(blue)
    red = lab.system.netns("red")
    for namespace in (here, blue, red):
        fds = namespace.create_tap(
            "vnet0", FIRST, queues=1, vnet_hdr=True, uid=None, gid=None
        )
        os.close(fds[0])
    seen = links_of(watch)
    assert set(seen) == {number}
    report = seen[number][FIRST]
    assert report
    assert (report.name, report.ifindex) == ("vnet0", FIRST)
    for opened in (watch, here, blue, red):
        opened.close()


def test_a_watch_here_reports_the_end_of_a_numbered_namespace(lab: ContractLab) -> None:
    lab.add_netns("blue")
    here, blue = lab.system.netns(None), lab.system.netns("blue")
    watch = lab.system.watch(first=FIRST)
    number = here.number(blue)
    blue.close()
    lab.delete_netns("blue")
    ended: set[int] = set()
    while not ended:  # the kernel ends a namespace in the background
        changes = watch.changes()
        assert changes is not None
        ended = changes.ended
    assert ended == {number}
    watch.close()
    here.close()


def test_a_descriptor_of_a_process_is_readable_once_it_has_ended(
    lab: ContractLab,
) -> None:
    pid = lab.start()
    process = lab.system.process(pid)
    assert process
    pidfd = lab.system.open_process(process)
    assert pidfd is not None
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(0) == []
    other = process._replace(start=process.start - 5)
    assert lab.system.open_process(other) is None
    lab.end(pid)
    assert poll.poll(10_000)
    assert lab.system.open_process(process) is None
