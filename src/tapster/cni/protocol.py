# SPDX-License-Identifier: Apache-2.0
"""The protocol between a container runtime and a CNI plugin. Pure.

Container Network Interface Specification 1.1.0, sections 2 and 5: the command and its
parameters come in the environment, the configuration comes as JSON on standard input.
"""

import json
from collections.abc import Mapping
from enum import IntEnum

from tapster import names
from tapster.errors import BadName
from tapster.light import Any, NamedTuple

VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
"""The versions of the specification that the plugin speaks, in rising order."""
NEWEST = VERSIONS[-1]
SINCE = {"GC": "1.1.0", "STATUS": "1.1.0"}
"""The version with which a command came, if it was not always there."""
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
ATTACHMENT_COMMANDS = ("ADD", "DEL", "CHECK")
"""The commands that are about one attachment: one container on one network."""


class Code(IntEnum):
    """The codes of errors. Those from 100 on are the plugin's own."""

    VERSION = 1
    FIELD = 2
    CONTAINER = 3
    ENVIRONMENT = 4
    IO = 5
    DECODING = 6
    CONFIGURATION = 7
    TRY_AGAIN = 11
    UNAVAILABLE = 50
    LIMITED = 51
    DIFFERS = 100
    """CHECK: the device is not as requested."""
    REFUSED = 101
    """Another program holds what is needed, or a policy does not allow it."""
    IPAM = 102
    """The IPAM plugin cannot be run, or answers with something else than a result."""
    INTERNAL = 999
    """A fault of Tapster's own."""


class CniFailure(Exception):
    """An error for the runtime."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(code, message, details)
        self.code = code
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return self.message

    def to_json(self, version: str) -> dict[str, Any]:
        """Return what is printed."""
        answer = {"cniVersion": version, "code": int(self.code), "msg": self.message}
        return {**answer, "details": self.details} if self.details else answer


class Attachment(NamedTuple):
    """One container on the network."""

    container: str
    ifname: str


class CniCall(NamedTuple):
    """The parameters in the environment."""

    command: str
    container: str = ""
    netns: str = ""
    ifname: str = ""
    arguments: tuple[tuple[str, str], ...] = ()
    """CNI_ARGS."""
    path: tuple[str, ...] = ()
    """The folders of plugins."""

    @property
    def attachment(self) -> Attachment:
        return Attachment(self.container, self.ifname)


def read_call(environment: Mapping[str, str]) -> CniCall:
    """Read the parameters. Raises CniFailure, with every variable that is wrong."""
    command = environment.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise CniFailure(
            Code.ENVIRONMENT,
            f"CNI_COMMAND is {command!r}, not one of {', '.join(COMMANDS)}",
        )
    call = CniCall(
        command,
        environment.get("CNI_CONTAINERID", ""),
        environment.get("CNI_NETNS", ""),
        environment.get("CNI_IFNAME", ""),
        path=tuple(filter(None, environment.get("CNI_PATH", "").split(":"))),
    )
    if command not in ATTACHMENT_COMMANDS:
        return call
    wrong = []
    if not is_identifier(call.container):
        wrong.append(wrong_identifier("CNI_CONTAINERID", call.container))
    try:
        check_ifname(call.ifname)
    except BadName as error:
        wrong.append(f"CNI_IFNAME: {error}")
    if not call.netns and command != "DEL":
        wrong.append("CNI_NETNS is empty, not the path of a network namespace")
    arguments: list[tuple[str, str]] = []
    for pair in filter(None, environment.get("CNI_ARGS", "").split(";")):
        key, equals, value = pair.partition("=")
        if not key or not equals:
            wrong.append(f"CNI_ARGS: {pair!r} is not KEY=VALUE")
        arguments.append((key, value))
    if wrong:
        raise CniFailure(Code.ENVIRONMENT, "; ".join(wrong))
    return call._replace(arguments=tuple(arguments))


LONGEST_IDENTIFIER = 200
"""Characters: the name of a file has an identifier, and more."""


def wrong_identifier(what: str, identifier: object) -> str:
    """Say why something does not identify a container or a network."""
    if isinstance(identifier, str) and len(identifier) > LONGEST_IDENTIFIER:
        return (
            f"{what} has {len(identifier)} characters, and at most "
            f"{LONGEST_IDENTIFIER} are allowed: {identifier!r}"
        )
    return (
        f"{what} {identifier!r} is not letters, digits, '_', '.' and '-', beginning "
        "with a letter or digit"
    )


def is_identifier(text: str) -> bool:
    """Say whether a text can identify a container or a network."""
    plain = text.replace("_", "").replace(".", "").replace("-", "")
    good = text[:1].isalnum() and (not plain or plain.isalnum())
    return good and text.isascii() and len(text) <= LONGEST_IDENTIFIER


def check_ifname(name: str) -> None:
    """Check the name of a device. Raises BadName."""
    names.check(name)
    if "%" in name or ":" in name:
        raise BadName(f"name {name!r} contains '%' or ':'", name=name)


def read_configuration(text: bytes) -> dict[str, Any]:
    """Decode the configuration. Raises CniFailure."""
    try:
        configuration = json.loads(text, parse_constant=_refuse)
        # A half of a surrogate pair is in no file's name, and no program prints it.
        json.dumps(configuration, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CniFailure(
            Code.DECODING, f"the configuration on standard input is not JSON: {error}"
        ) from None
    if not isinstance(configuration, dict):
        raise CniFailure(
            Code.DECODING,
            "the configuration on standard input is not a JSON object but "
            f"{type(configuration).__name__}",
        )
    return configuration


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def wrong_part(result: Mapping[str, Any]) -> str | None:
    """Return what has another form in a result than the specification's, or None."""
    for key in ("interfaces", "ips", "routes"):
        items = result.get(key, [])
        if not isinstance(items, list) or not all(
            isinstance(item, dict) for item in items
        ):
            return f"{key} must be a list of objects, not {items!r}"
    for address in result.get("ips", ()):
        if not isinstance(address.get("address"), str):
            return f"ips has {address!r}, without address"
    return None


def check_version(call: CniCall, configuration: Mapping[str, Any]) -> str:
    """Return the version that the runtime speaks. Raises CniFailure."""
    version = configuration.get("cniVersion")
    supported = f"tapster-cni supports {', '.join(VERSIONS)}"
    if not isinstance(version, str):
        raise CniFailure(
            Code.VERSION, f"cniVersion is {json.dumps(version)}, not text", supported
        )
    if version not in VERSIONS:
        raise CniFailure(
            Code.VERSION, "incompatible cniVersion " + repr(version), supported
        )
    since = SINCE.get(call.command, version)
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise CniFailure(
            Code.VERSION,
            f"{call.command} needs cniVersion {since}, not {version!r}",
            supported,
        )
    return version


def version_to_answer_in(configuration: object) -> str:
    """Return the version for an error: the runtime's if it is supported."""
    version = isinstance(configuration, dict) and configuration.get("cniVersion")
    return version if isinstance(version, str) and version in VERSIONS else NEWEST
