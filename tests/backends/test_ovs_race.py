# SPDX-License-Identifier: Apache-2.0
"""The race as it was first reported: a VM stops on Open vSwitch while another starts.

FIN WAIT is forced to nothing, so that the next VM has the name at once, and identity
alone protects it from the cleanup that comes late. `RACE_ROUNDS` says how often.
"""

import os
import threading

import pytest

from lab import iproute, shell
from lab.openvswitch import OpenVswitch, rows, vsctl
from tapster import Host, Lease
from tapster.backends.ovs import Ovs
from tapster.model import Rate
from tests.backends.ovs_vms import PLAIN, acquire

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

ROUNDS = int(os.environ.get("RACE_ROUNDS", "60"))

WEB = PLAIN._replace(name="web0", fin_wait=0.0, vlan=5, inbound=Rate(1000))


@pytest.fixture
def latecomer(switch: OpenVswitch, host: Host) -> Ovs:
    """Another manager's backend: it cleans up what it thinks is there."""
    acquire(host)
    return Ovs(iproute.links()["vnet0"]["ifalias"].split(":")[1])


def seen(name: str) -> str:
    """What ovs-vsctl and tc show of a VM's port."""
    columns = "--columns=_uuid,tag,qos,external_ids"
    return "\n".join(
        [
            vsctl(f"port-to-br {name}"),
            vsctl(f"{columns} list Port {name}"),
            vsctl(f"--columns=_uuid,ofport,external_ids list Interface {name}"),
            shell.sh(f"tc class show dev {name}"),
            "up" if "UP" in iproute.links()[name]["flags"] else "down",
        ]
    )


@pytest.mark.timeout(600)
def test_a_cleanup_that_comes_late_never_hits_the_next_vm(
    host: Host, switch: OpenVswitch, latecomer: Ovs
) -> None:
    gone = acquire(host, WEB)
    for number in range(ROUNDS):
        host.release(gone.id)
        go = threading.Barrier(2)
        late = threading.Thread(target=clean_up, args=(latecomer, gone, go, 3))
        late.start()
        go.wait()
        # Another VM, started during the cleanup of the last VM.
        lease = acquire(host, WEB, vlan=1 + number % 4000)
        before = seen("web0")
        late.join()
        latecomer.detach(None, gone)
        assert seen("web0") == before, number
        assert lease.id in before
        gone = lease
    assert len(rows("QoS")) == len(rows("Queue")) == 2


def clean_up(backend: Ovs, gone: Lease, go: threading.Barrier, times: int) -> None:
    go.wait()
    for _ in range(times):
        backend.detach(None, gone)


def test_a_cleanup_by_name_would_hit_it(host: Host, switch: OpenVswitch) -> None:
    """So the test above can fail: this is what others do."""
    gone = acquire(host, WEB)
    host.release(gone.id)
    acquire(host, WEB)
    vsctl(f"--if-exists del-port {gone.name}")
    assert "web0" not in vsctl("list-ports ovs0").split()
