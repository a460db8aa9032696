# SPDX-License-Identifier: Apache-2.0
"""The rooms of the tree: which module may import which, and why."""

from typing import NamedTuple

from tests.repo.tree import inside


class Room(NamedTuple):
    """A module or package, and what of Tapster it may import beside itself."""

    name: str
    may: tuple[str, ...]
    why: str


ROOMS = [
    Room("tapster.light", (), "it stands for Python's own typing"),
    Room("tapster.finder", (), "it finds all other modules"),
    Room("tapster.rpc", (), "the wire protocol: its parts follow"),
    Room("tapster.ledger", (), "one file of records: its parts follow"),
    Room("tapster.operations", (), "one operation in each file: they follow"),
    Room("tapster.errors", (), "everything raises them"),
    Room("tapster.checks", ("tapster.errors",), "pure rules of types"),
    Room("tapster.names", ("tapster.errors",), "pure rules"),
    Room(
        "tapster.model",
        ("tapster.checks", "tapster.errors", "tapster.names"),
        "plain values",
    ),
    Room(
        "tapster.defaults",
        ("tapster.errors", "tapster.model"),
        "pure rules of values",
    ),
    Room(
        "tapster.open_device",
        ("tapster.errors", "tapster.kernel.signals", "tapster.model"),
        "it owns descriptors",
    ),
    Room(
        "tapster.gate",
        ("tapster.errors", "tapster.kernel.signals"),
        "it guards an object, whatever that does",
    ),
    Room(
        "tapster.api",
        (
            "tapster.checks",
            "tapster.errors",
            "tapster.model",
            "tapster.open_device",
            "tapster.operations.decision",
        ),
        "what Host and Client both do",
    ),
    Room("tapster.rpc.varlink", (), "messages and types, for any interface"),
    Room("tapster.rpc.description", ("tapster.rpc.varlink",), "for any interface"),
    Room("tapster.rpc.wire", ("tapster.model",), "it is made of the model's own types"),
    Room(
        "tapster.rpc.interface",
        (
            "tapster.errors",
            "tapster.operations.decision",
            "tapster.model",
            "tapster.rpc.description",
            "tapster.rpc.varlink",
            "tapster.rpc.wire",
        ),
        "the interface is made of the model's own types",
    ),
    Room(
        "tapster.rpc.client",
        (
            "tapster.api",
            "tapster.checks",
            "tapster.errors",
            "tapster.gate",
            "tapster.open_device",
            "tapster.rpc.interface",
            "tapster.kernel.unix",
            "tapster.operations.decision",
            "tapster.model",
            "tapster.rpc.varlink",
            "tapster.rpc.wire",
        ),
        "it sits in VMs' start path: no more than a socket and messages",
    ),
    Room(
        "tapster.integrate",
        (
            "tapster.rpc.client",
            "tapster.errors",
            "tapster.kernel.unix",
            "tapster.model",
        ),
        "it stands in for others' programs: small, and without privileges",
    ),
    Room("tapster.integrate.acl", (), "a file format"),
    Room("tapster.daemon", ("tapster",), "the top, beside the command"),
    Room(
        "tapster.daemon.policy", ("tapster.model",), "who may do what is pure reasoning"
    ),
    Room(
        "tapster.daemon.metrics", ("tapster.rpc.interface",), "figures, and their text"
    ),
    Room("tapster.daemon.throttle", (), "arithmetic"),
    Room(
        "tapster.daemon.methods",
        (
            "tapster.daemon.config",
            "tapster.daemon.log",
            "tapster.daemon.metrics",
            "tapster.daemon.policy",
            "tapster.daemon.upkeep",
            "tapster.doctor",
            "tapster.errors",
            "tapster.fleet.book",
            "tapster.kernel",
            "tapster.model",
            "tapster.operations",
            "tapster.rpc",
        ),
        "a method knows its caller, and neither connections nor threads",
    ),
    Room("tapster.operations.decision", ("tapster.model",), "a pure table"),
    Room("tapster.operations.pace", (), "a pure count"),
    Room(
        "tapster.kernel",
        ("tapster.errors", "tapster.kernel.files", "tapster.model"),
        "system calls know nothing of leases that are kept, or of policy",
    ),
    Room(
        "tapster.ledger.allocator",
        (
            "tapster.errors",
            "tapster.model",
            "tapster.names",
            "tapster.ledger.sqlite",
        ),
        "what must be known of the kernel is passed in: a transaction is short",
    ),
    Room(
        "tapster.ledger.database",
        (
            "tapster.errors",
            "tapster.kernel.files",
            "tapster.ledger.failure",
            "tapster.ledger.sqlite",
        ),
        "a file, whatever is in it",
    ),
    Room(
        "tapster.kernel.files",
        ("tapster.errors",),
        "whose they are, whatever is in them",
    ),
    Room(
        "tapster.ledger.rows",
        ("tapster.model", "tapster.names"),
        "pure: values of columns",
    ),
    Room(
        "tapster.ledger.failure",
        (
            "tapster.errors",
            "tapster.kernel.files",
            "tapster.ledger.sqlite",
        ),
        "errors of the file, with what would be right",
    ),
    Room(
        "tapster.ledger.claims",
        (
            "tapster.model",
            "tapster.ledger.sqlite",
        ),
        "one column of a table",
    ),
    Room(
        "tapster.ledger.history",
        (
            "tapster.ledger.rows",
            "tapster.ledger.settings",
            "tapster.model",
            "tapster.ledger.sqlite",
        ),
        "two tables of what is over",
    ),
    Room(
        "tapster.ledger.namespaces",
        (
            "tapster.model",
            "tapster.ledger.sqlite",
        ),
        "one table",
    ),
    Room(
        "tapster.ledger.settings",
        (
            "tapster.ledger.database",
            "tapster.ledger.sqlite",
        ),
        "one table",
    ),
    Room(
        "tapster.ledger.leases",
        (
            "tapster.errors",
            "tapster.ledger.allocator",
            "tapster.ledger.database",
            "tapster.ledger.namespaces",
            "tapster.ledger.rows",
            "tapster.ledger.settings",
            "tapster.model",
            "tapster.names",
            "tapster.ledger.sqlite",
        ),
        "one table, and the names that its rows free",
    ),
    Room(
        "tapster.ledger.transactions",
        ("tapster.errors", "tapster.ledger", "tapster.model", "tapster.names"),
        "it is told what must be known of the kernel: a transaction is short",
    ),
    Room(
        "tapster.backends",
        ("tapster.errors", "tapster.kernel.port", "tapster.model"),
        "a backend asks for verbs of the port, and works on any kernel behind it",
    ),
    Room(
        "tapster.operations.failures",
        ("tapster.errors",),
        "errors that wait until a batch is done",
    ),
    Room(
        "tapster.operations.claims",
        (
            "tapster.kernel.lock",
            "tapster.kernel.port",
            "tapster.ledger",
            "tapster.model",
        ),
        "a claim is a number in the ledger, and a lock on that number",
    ),
    Room(
        "tapster.operations.context",
        (
            "tapster.fleet.macs",
            "tapster.backends",
            "tapster.errors",
            "tapster.gate",
            "tapster.kernel",
            "tapster.ledger",
            "tapster.model",
            "tapster.operations.claims",
        ),
        "ledger, kernel and backends are opened here, and meet from here on",
    ),
    Room(
        "tapster.operations.devices",
        (
            "tapster.backends",
            "tapster.errors",
            "tapster.kernel.port",
            "tapster.model",
            "tapster.operations.context",
            "tapster.operations.decision",
            "tapster.operations.failures",
        ),
        "one device at a time, by its identity",
    ),
    Room(
        "tapster.operations.look",
        (
            "tapster.backends",
            "tapster.errors",
            "tapster.model",
            "tapster.operations.context",
            "tapster.operations.decision",
            "tapster.operations.devices",
            "tapster.operations.failures",
        ),
        "it only reads",
    ),
    Room(
        "tapster.operations.rewire",
        (
            "tapster.backends.bridge",
            "tapster.errors",
            "tapster.kernel.port",
            "tapster.model",
            "tapster.operations.context",
            "tapster.operations.devices",
        ),
        "an operation",
    ),
    Room(
        "tapster.operations.acquire",
        (
            "tapster.fleet.macs",
            "tapster.backends.bridge",
            "tapster.backends.lower",
            "tapster.backends.redirect",
            "tapster.errors",
            "tapster.kernel.port",
            "tapster.kernel.signals",
            "tapster.ledger",
            "tapster.model",
            "tapster.operations.context",
            "tapster.operations.devices",
            "tapster.operations.failures",
        ),
        "an operation",
    ),
    Room(
        "tapster.operations.leftovers",
        (
            "tapster.errors",
            "tapster.model",
            "tapster.operations.context",
        ),
        "an operation",
    ),
    Room(
        "tapster.operations.reap",
        (
            "tapster.errors",
            "tapster.model",
            "tapster.operations.context",
            "tapster.operations.devices",
            "tapster.operations.failures",
        ),
        "an operation",
    ),
    Room(
        "tapster.operations.release",
        (
            "tapster.errors",
            "tapster.kernel.port",
            "tapster.model",
            "tapster.operations.context",
            "tapster.operations.devices",
            "tapster.operations.failures",
        ),
        "an operation",
    ),
    Room(
        "tapster.operations.reopen",
        (
            "tapster.errors",
            "tapster.kernel.port",
            "tapster.model",
            "tapster.operations.context",
            "tapster.operations.devices",
            "tapster.operations.look",
        ),
        "an operation",
    ),
    Room(
        "tapster.operations.followed",
        (
            "tapster.errors",
            "tapster.kernel.port",
            "tapster.model",
            "tapster.operations.look",
        ),
        "reaper and daemon follow the namespaces that have leases",
    ),
    Room(
        "tapster.operations.orphans",
        ("tapster.model", "tapster.operations.context"),
        "each verb asks this before anything else",
    ),
    Room(
        "tapster.operations.repair",
        (
            "tapster.backends.backend",
            "tapster.errors",
            "tapster.kernel.port",
            "tapster.model",
            "tapster.operations.context",
            "tapster.operations.decision",
            "tapster.operations.devices",
            "tapster.operations.failures",
            "tapster.operations.reap",
            "tapster.operations.rewire",
        ),
        "it does what the table says, with the verbs of the other operations",
    ),
    Room(
        "tapster.operations.recover",
        (
            "tapster.errors",
            "tapster.kernel.port",
            "tapster.model",
            "tapster.operations.context",
            "tapster.operations.decision",
            "tapster.operations.devices",
            "tapster.operations.failures",
            "tapster.operations.orphans",
            "tapster.operations.repair",
            "tapster.operations.rewire",
        ),
        "an operation: it repairs the leases of one namespace after the other",
    ),
    Room(
        "tapster.operations.bind",
        (
            "tapster.errors",
            "tapster.operations.context",
            "tapster.operations.recover",
        ),
        "an operation: it releases what is bound to a process that has ended",
    ),
    Room(
        "tapster.operations.operations",
        (
            "tapster.backends",
            "tapster.kernel.port",
            "tapster.operations",
        ),
        "every operation is constructed here",
    ),
    Room(
        "tapster.host",
        (
            "tapster.api",
            "tapster.backends",
            "tapster.checks",
            "tapster.doctor",
            "tapster.kernel.port",
            "tapster.kernel.signals",
            "tapster.model",
            "tapster.open_device",
            "tapster.operations.decision",
            "tapster.operations.operations",
        ),
        "the face of the operations for users",
    ),
    Room(
        "tapster.reaper",
        (
            "tapster.errors",
            "tapster.kernel",
            "tapster.ledger",
            "tapster.light",
            "tapster.model",
            "tapster.operations",
        ),
        "it does what any user of the operations could do",
    ),
    Room(
        "tapster.hazards",
        (
            "tapster.backends.bridge",
            "tapster.backends.ovs",
            "tapster.errors",
            "tapster.kernel.port",
            "tapster.kernel.udev",
            "tapster.kernel.xtables",
            "tapster.model",
        ),
        "it looks at a namespace, and at files of other programs",
    ),
    Room(
        "tapster.doctor",
        (
            "tapster.hazards",
            "tapster.errors",
            "tapster.operations.operations",
            "tapster.kernel",
            "tapster.operations.decision",
            "tapster.model",
            "tapster.names",
        ),
        "it looks everywhere and changes nothing",
    ),
    Room(
        "tapster.testing",
        (
            "tapster.backends",
            "tapster.errors",
            "tapster.kernel.descriptors",
            "tapster.kernel.port",
            "tapster.model",
        ),
        "a host in memory stands behind the port, as the real kernel does",
    ),
    Room(
        "tapster.install",
        ("tapster.errors",),
        "files on their way to a host; it knows nothing of devices",
    ),
    Room("tapster.libvirt", (), "each part follows"),
    Room("tapster.libvirt.spans", ("tapster.errors",), "text in, places out"),
    Room(
        "tapster.libvirt.domain",
        ("tapster.errors", "tapster.libvirt.spans"),
        "a domain's XML: text in, values out",
    ),
    Room(
        "tapster.libvirt.conversion",
        ("tapster.errors", "tapster.libvirt.domain"),
        "an interface in, options out",
    ),
    Room(
        "tapster.libvirt.adoption",
        (
            "tapster.errors",
            "tapster.libvirt.conversion",
            "tapster.libvirt.domain",
            "tapster.libvirt.spans",
        ),
        "a domain's XML: text in, text out",
    ),
    Room(
        "tapster.libvirt.network",
        ("tapster.errors", "tapster.libvirt.spans"),
        "a network's XML: text in, a place out",
    ),
    Room("tapster.libvirt.virsh", ("tapster.errors",), "a program, and what it says"),
    Room("tapster.libvirt.hooks", ("tapster.errors",), "a file, and whether it counts"),
    Room(
        "tapster.libvirt.hook",
        ("tapster.errors", "tapster.host", "tapster.model"),
        "libvirt waits for it: it must not call libvirt",
    ),
    Room(
        "tapster.libvirt.arrival",
        (
            "tapster.errors",
            "tapster.host",
            "tapster.libvirt.hook",
            "tapster.libvirt.virsh",
            "tapster.model",
        ),
        "the hook's work that has to wait for libvirt",
    ),
    Room(
        "tapster.libvirt.plug",
        (
            "tapster.errors",
            "tapster.host",
            "tapster.kernel.lock",
            "tapster.libvirt.adoption",
            "tapster.libvirt.domain",
            "tapster.libvirt.hook",
            "tapster.libvirt.virsh",
            "tapster.model",
        ),
        "a device, and libvirt's part of it",
    ),
    Room(
        "tapster.libvirt.doctor",
        (
            "tapster.api",
            "tapster.errors",
            "tapster.libvirt.domain",
            "tapster.libvirt.hook",
            "tapster.libvirt.hooks",
            "tapster.libvirt.virsh",
            "tapster.model",
        ),
        "it looks at domains and changes nothing",
    ),
    Room(
        "tapster.libvirt.listing",
        (
            "tapster.errors",
            "tapster.host",
            "tapster.libvirt.domain",
            "tapster.libvirt.hook",
            "tapster.libvirt.virsh",
            "tapster.model",
        ),
        "it only reads",
    ),
    Room(
        "tapster.__main__", ("tapster.cli", "tapster.finder"), "it starts the command"
    ),
    Room(
        "tapster.cni",
        (
            "tapster.api",
            "tapster.backends.bridge",
            "tapster.backends.lower",
            "tapster.errors",
            "tapster.host",
            "tapster.kernel.failure",
            "tapster.kernel.linux",
            "tapster.kernel.signals",
            "tapster.model",
            "tapster.rpc.client",
        ),
        "a container runtime starts it for each pod: it does what an AnyHost can do",
    ),
    Room("tapster.cni.protocol", ("tapster.errors", "tapster.names"), "text"),
    Room(
        "tapster.cni.config",
        ("tapster.cni.protocol", "tapster.model"),
        "from a configuration to a request is pure reasoning",
    ),
    Room(
        "tapster.cni.result",
        ("tapster.cni.config", "tapster.cni.protocol", "tapster.model"),
        "from a lease to a result is pure reasoning",
    ),
    Room(
        "tapster.fleet",
        ("tapster.errors", "tapster.ledger", "tapster.model"),
        "it pushes what a ledger says, and touches no device",
    ),
    Room("tapster.fleet.registration", (), "who has a MAC is pure reasoning"),
    Room(
        "tapster.fleet.keys",
        ("tapster.errors", "tapster.fleet.registration", "tapster.fleet.store"),
        "keys and values",
    ),
    Room("tapster.fleet.store", ("tapster.errors",), "a protocol, and its errors"),
    Room("tapster.fleet.memory", ("tapster.fleet.store",), "a store of its own"),
    Room(
        "tapster.fleet.steps",
        (
            "tapster.errors",
            "tapster.fleet.registration",
            "tapster.fleet.keys",
            "tapster.fleet.store",
        ),
        "the explorer runs them on a store that answers late",
    ),
    Room(
        "tapster.fleet.etcd",
        ("tapster.errors", "tapster.fleet.store"),
        "a store, whatever is in it",
    ),
    Room("tapster.cli", ("tapster",), "the top: it may use all there is"),
]

# The package itself only says what is public.
PUBLIC = Room(
    "tapster",
    (
        "tapster.api",
        "tapster.backends.backend",
        "tapster.errors",
        "tapster.host",
        "tapster.kernel.port",
        "tapster.model",
        "tapster.open_device",
        "tapster.operations.decision",
        "tapster.rpc.client",
        "tapster.rpc.interface",
    ),
    "it shows the world what these rooms define",
)


def room_of(module: str) -> Room:
    found = [room for room in ROOMS if inside(module, room.name)]
    if module == PUBLIC.name:
        return PUBLIC
    assert found, f"{module} needs a room in the table"
    return max(found, key=lambda room: len(room.name))  # the innermost


class Keeper(NamedTuple):
    """A module of Python that only some rooms may import."""

    name: str
    rooms: tuple[str, ...]
    why: str


KEEPERS = [
    Keeper("typing", ("tapster.light",), "it takes longer to import than Python"),
    Keeper("fcntl", ("tapster.kernel",), "system calls live in one room"),
    Keeper("ctypes", ("tapster.kernel",), "system calls live in one room"),
    Keeper(
        "socket",
        ("tapster.fleet.etcd", "tapster.daemon", "tapster.integrate", "tapster.kernel"),
        "netlink is the kernel's",
    ),
    Keeper("_sqlite3", ("tapster.ledger.sqlite",), "one owner of the file"),
    Keeper("sqlite3", (), "it imports datetime, which is slow"),
    Keeper(
        "argparse",
        ("tapster.cli", "tapster.daemon.__main__", "tapster.install.__main__"),
        "a library has no command line",
    ),
    Keeper(
        "json",
        (
            "tapster.fleet.etcd",
            "tapster.fleet.keys",
            "tapster.cli",
            "tapster.cni",
            "tapster.kernel.nft",
            "tapster.rpc.varlink",
            "tapster.backends.ovsrpc",
        ),
        "for who reads it",
    ),
    Keeper(
        "ovs", ("tapster.backends.ovsrpc",), "it is slow to import, and may be absent"
    ),
    Keeper("pyroute2", ("tapster.backends.htb",), "it is slow to import, and optional"),
    Keeper(
        "tomllib",
        (
            "tapster.cli.defaults",
            "tapster.fleet.settings",
            "tapster.daemon.config",
        ),
        "only the daemon and a fleet have a file",
    ),
    Keeper(
        "importlib",
        (),
        "it would hide an import from this test",
    ),
    Keeper(
        "signal",
        (
            "tapster.cli",
            "tapster.daemon.server",
            "tapster.reaper",
        ),
        "a library takes no signals",
    ),
    Keeper(
        "_signal",
        (
            "tapster.__main__",
            "tapster.cli",
            "tapster.kernel.detached",
            "tapster.kernel.signals",
        ),
        "the module signal does as well",
    ),
    Keeper("hashlib", ("tapster.names",), "it costs a third of a verb's start"),
    Keeper("subprocess", (), "it is slow to import; os.posix_spawn is not"),
    Keeper("asyncio", (), "it is slow to import, and nothing here is concurrent"),
    Keeper("dataclasses", (), "it is slow to import; named tuples do"),
    Keeper("random", (), "names and identities come from os.urandom"),
    Keeper("logging", (), "a library raises; only the command speaks"),
]

PURE = {
    "tapster.light": {
        "_collections",
        "_collections_abc",
        "ast",
        "collections.abc",
        "contextlib",
        "enum",
        "functools",
        "inspect",
        "operator",
        "textwrap",
        "types",
        "typing",
    },
    "tapster.errors": {"errno", "os"},  # os.strerror
    "tapster.checks": set(),
    "tapster.names": {"hashlib"},
    "tapster.model": {"ipaddress"},
    "tapster.ledger.rows": {"collections.abc", "functools"},
    "tapster.operations.decision": set(),
    "tapster.fleet.registration": set(),
    "tapster.fleet.keys": {"collections.abc", "json"},
    "tapster.fleet.store": {"collections.abc"},
    "tapster.fleet.steps": {"collections.abc"},
    "tapster.rpc.varlink": {"_json", "json"},
    "tapster.rpc.interface": set(),
    "tapster.daemon.policy": {"collections.abc", "fnmatch"},
    "tapster.daemon.metrics": {"bisect", "collections.abc"},
    "tapster.daemon.throttle": set(),
    "tapster.cni.protocol": {"collections.abc", "enum", "json"},
    "tapster.cni.config": {"collections.abc"},
    "tapster.cni.result": {"collections.abc"},
    "tapster.libvirt.domain": {"collections.abc"},
    "tapster.libvirt.conversion": {"collections.abc"},
    "tapster.libvirt.adoption": {"collections.abc", "xml.sax.saxutils"},
    "tapster.libvirt.network": set(),
    "tapster.libvirt.spans": {"xml.parsers"},
    "tapster.backends.ovsdb": {"collections.abc"},
    "tapster.backends.ovsport": {"collections.abc"},
}
"""The rooms that have no effects, with what of Python they may import."""
