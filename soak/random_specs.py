# SPDX-License-Identifier: Apache-2.0
"""The requests of VMs, drawn at random, and the same requests as options."""

from random import Random

from soak.ground import BRIDGES, PASSTHRU
from tapster import Macvtap, Mode, Naming, Tap

Spec = Tap | Macvtap

NAMES = [
    ("vnet%d", Naming.LOWEST),
    ("vnet%d", Naming.LOWEST),
    ("vnet%d", Naming.LOWEST),
    ("vnet%d", Naming.NEXT),
    ("vnet%d", Naming.STABLE),
    ("vm%d-t", Naming.LOWEST),
    ("ci%d", Naming.LOWEST),
    ("ci%d", Naming.NEXT),
    ("web", Naming.LOWEST),
    ("db", Naming.LOWEST),
]
WAITS = (2.0, 3.0, 4.0)
KEYS = ("alpha", "beta", "gamma")


def random_specs(random: Random, owner: str) -> list[Spec]:
    """Return the network cards of one VM."""
    count = random.choice((1, 1, 1, 2, 3))
    return [_random_spec(random, f"{owner}.{number}") for number in range(count)]


def _random_spec(random: Random, owner: str) -> Spec:
    name, naming = random.choice(NAMES)
    key = random.choice(KEYS) if naming is Naming.STABLE else None
    wait = 0.0 if random.random() < 0.05 else random.choice(WAITS)
    queues = random.choice((1, 1, 1, 2))
    if random.random() < 0.7:
        bridge = None if random.random() < 0.05 else random.choice([*BRIDGES])
        return Tap(
            bridge,
            name,
            naming,
            key,
            owner,
            queues=queues,
            isolated=bridge is not None and random.random() < 0.2,
            learning=bridge is None or random.random() < 0.8,
            mtu=random.choice((None, 1300)),
            fin_wait=wait,
        )
    mode = random.choice([*Mode])
    link = PASSTHRU if mode is Mode.PASSTHRU else "low0"
    return Macvtap(link, mode, name, naming, key, owner, queues=queues, fin_wait=wait)


def options(spec: Spec) -> dict[str, str]:
    """Return the same for `tapster add` and `tapster run`; "" for those without a
    value."""
    chosen: dict[str, str | None] = {
        "name": spec.name,
        "naming": spec.naming,
        "key": spec.key,
        "owner": spec.owner,
        "queues": str(spec.queues),
        "mtu": str(spec.mtu) if spec.mtu else None,
        "fin-wait": str(spec.fin_wait),
    }
    if isinstance(spec, Macvtap):
        chosen |= {"link": spec.lower, "mode": spec.mode}
    else:
        chosen["bridge"] = spec.bridge
        chosen["isolated"] = "" if spec.isolated else None
        chosen["no-learning"] = None if spec.learning else ""
    return {key: value for key, value in chosen.items() if value is not None}
