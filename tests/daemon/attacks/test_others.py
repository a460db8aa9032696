# SPDX-License-Identifier: Apache-2.0
"""What a user learns of other users' leases, and takes of them: nothing."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.library import close
from tapster import Macvtap, Mode, Naming, Spec, Tap
from tapster.daemon.methods.call import Answer, Call
from tapster.daemon.policy import Caller, Rule
from tapster.errors import ConflictError, MacTaken, NameTaken
from tapster.model import Lease
from tapster.rpc import interface, varlink
from tests.daemon.parts import ALICE, BOB, ROOT, Parts, parts

SECRET = "secret"
"""The owner that Alice gives to her leases."""
MAC = "52:54:00:00:00:01"
BR0 = Tap(bridge="br0", name="m%d")
RULE = Rule(
    users=("1000", "1001"),
    kinds=("*",),
    bridges=("br0",),
    lower=("eth0",),
    templates=("m*",),
    features=("mac", "mode", "naming", "reclaim", "fin-wait"),
)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Parts]:
    with parts(tmp_path) as made:
        made.system.stranger().add_veth("eth0", "eth1")
        made.access.loaded = made.access.loaded._replace(rules=(RULE,))
        yield made


def acquire(made: Parts, caller: Caller, *specs: Spec) -> Sequence[Lease]:
    nics = tuple(map(interface.nic, specs))
    asked = interface.Acquire(nics, interface.Binding.NOTHING)
    answer = made.service.call("Acquire", Call(caller, -1, asked, ()))
    assert isinstance(answer, Answer)
    close(answer.fds)
    return [device.lease for device in answer.parameters.devices]


def release(made: Parts, caller: Caller, lease: Lease) -> None:
    made.service.call("Release", Call(caller, -1, interface.Release(lease.id), ()))


def sent(error: ConflictError) -> str:
    """An error as its caller receives it."""
    return json.dumps(varlink.to_json(interface.failure(error)))


@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize(
    ("theirs", "wanted", "kind", "told"),
    [
        ({"name": "m1"}, {"name": "m1"}, NameTaken, "'m1' is in use by another user"),
        ({"mac": MAC}, {"mac": MAC}, MacTaken, f"MAC {MAC} is in use by a device of"),
    ],
)
def test_an_error_tells_nothing_of_another_users_lease(
    made: Parts,
    mine: bool,
    theirs: dict[str, Any],
    wanted: dict[str, Any],
    kind: type[ConflictError],
    told: str,
) -> None:
    (lease,) = acquire(made, ALICE, BR0._replace(owner=SECRET, **theirs))
    asker = ALICE if mine else BOB
    with pytest.raises(kind) as caught:
        acquire(made, asker, BR0._replace(**wanted))
    for text in (lease.id, SECRET):
        assert (text in sent(caught.value)) == mine
    assert (told in str(caught.value)) != mine
    # Root and users with see-others are told.
    with pytest.raises(kind) as caught:
        acquire(made, ROOT, BR0._replace(**wanted))
    assert lease.id in sent(caught.value)
    assert SECRET in sent(caught.value)


def test_the_end_of_another_users_wait_is_told_and_nothing_else(made: Parts) -> None:
    (lease,) = acquire(made, ALICE, BR0._replace(name="m1", owner=SECRET))
    release(made, ALICE, lease)
    with pytest.raises(NameTaken, match="another user, in FIN WAIT") as caught:
        acquire(made, BOB, BR0._replace(name="m1"))
    assert caught.value.until is not None
    assert lease.id not in sent(caught.value)
    assert SECRET not in sent(caught.value)


@pytest.mark.parametrize(("asker", "told"), [(ALICE, True), (BOB, False), (ROOT, True)])
def test_who_is_on_a_lower_device_is_told_to_that_user_alone(
    made: Parts, asker: Caller, told: bool
) -> None:
    on = Macvtap("eth0", name="m%d", owner=SECRET, mode=Mode.PASSTHRU)
    (lease,) = acquire(made, ALICE, on)
    with pytest.raises(ConflictError, match="must be alone there") as caught:
        acquire(made, asker, on._replace(owner=""))
    for text in (lease.id, lease.name, SECRET):
        assert (text in sent(caught.value)) == told


def test_a_user_has_keys_of_stable_names_of_its_own(made: Parts) -> None:
    """With another user's key, a user would get the name and the MAC of that user's
    VM, and would keep them from it."""
    keyed = BR0._replace(naming=Naming.STABLE, key="web", fin_wait=0)
    given: dict[Caller, set[tuple[str, str]]] = {}
    for _ in range(2):
        for caller in (ALICE, BOB, ROOT):
            (lease,) = acquire(made, caller, keyed)
            release(made, caller, lease)
            given.setdefault(caller, set()).add((lease.name, lease.mac))
    assert [len(names) for names in given.values()] == [1, 1, 1]
    assert len(set.union(*given.values())) == 3
    # The command and root have the same keys, and a key has the number of its hash.
    (lease,) = acquire(made, ROOT, keyed)
    release(made, ROOT, lease)
    with made.host.acquire(keyed) as opened:
        assert (opened.lease.name, opened.lease.mac) == (lease.name, lease.mac)
