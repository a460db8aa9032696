# SPDX-License-Identifier: Apache-2.0
"""Talk to libvirt through virsh(1).

virsh is a program: every Python can call it, also the one of a virtual environment,
which does not see the binding of the distribution. It connects to where
LIBVIRT_DEFAULT_URI says, else to the system's libvirt.
"""

import os
from select import select

from tapster.errors import HostError

SYSTEM = "qemu:///system"
SIGKILL = 9
"""On every architecture; a library imports no `signal`."""
ANSWER_SECONDS = 60.0
"""How long the list of domains may take. A libvirtd that is stopped never answers, and
virsh itself knows no limit."""


def call(
    *arguments: str, xml: bytes | None = None, seconds: float | None = None
) -> bytes:
    """Run a command of virsh and return its output.

    With `xml`, the command can read it from /dev/stdin. With `seconds`, it is killed
    after this time. Raise HostError.
    """
    uri = os.environ.get("LIBVIRT_DEFAULT_URI") or SYSTEM
    # Files in memory: no pipe can fill up, and both outputs can be read at the end.
    files = [os.memfd_create("virsh") for _ in range(3)]
    try:
        if xml is not None:
            os.write(files[0], xml)
            os.lseek(files[0], 0, os.SEEK_SET)
        try:
            pid = os.posix_spawnp(
                "virsh",
                ["virsh", "--quiet", "--connect", uri, *arguments],
                {**os.environ, "LC_ALL": "C"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, file, number)
                    for number, file in enumerate(files)
                ],
            )
        except FileNotFoundError:
            raise HostError(
                "there is no program 'virsh' on this host: install it, in Debian with "
                "the package libvirt-clients"
            ) from None
        late = not _wait(pid, seconds)
        if late:
            os.kill(pid, SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        output, complaint = (_contents(file) for file in files[1:])
    finally:
        for file in files:
            os.close(file)
    if late:
        raise HostError(f"virsh {arguments[0]}: no answer in {seconds:g} s")
    if status:
        lines = complaint.decode(errors="replace").split("error: ")
        reason = " ".join(" ".join(lines[-1:]).split())
        raise HostError(f"virsh {arguments[0]}: {reason or f'status {status}'}")
    return output


def _wait(pid: int, seconds: float | None) -> bool:
    """Wait for the end of a child; return False if that took too long."""
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


def domains() -> dict[str, str]:
    """Return the UUIDs of all domains, by their names.

    The other functions take a UUID. virsh would take the name "7" for the domain with
    the id 7, which is any domain that runs.
    """
    listed = call("list", "--all", "--uuid", "--name", seconds=ANSWER_SECONDS)
    lines = [line.partition(" ") for line in listed.decode().split("\n") if line]
    return {name: uuid for uuid, _, name in lines}


def uuid_of(name: str) -> str:
    """Return the UUID of the domain with this name, else what was given: a UUID."""
    return domains().get(name, name)


def definition(domain: str) -> bytes:
    """Return the XML with which a domain starts next."""
    return call("dumpxml", "--inactive", "--security-info", "--domain", domain)


def live(domain: str) -> bytes:
    """Return the XML of a domain that runs."""
    return call("dumpxml", "--security-info", "--domain", domain)


def runs(domain: str) -> bool:
    """Return whether a domain has a QEMU."""
    return state(domain) not in ("shut off", "crashed")


def state(domain: str) -> str:
    """Return the state of a domain, as virsh calls it."""
    return call("domstate", "--domain", domain).decode().strip()


def define(xml: bytes) -> None:
    """Change the definition of a domain to this XML, from the next start on."""
    call("define", "/dev/stdin", xml=xml)


def set_live_metadata(domain: str, uri: str, element: bytes) -> None:
    """Give a domain that runs this element of metadata, until its end.

    The key is a further prefix: libvirt refuses one that the element has.
    """
    call(
        *("metadata", "--live", "--domain", domain, "--uri", uri),
        *("--key", "live", "--set", element.decode()),
    )


def network(name: str) -> bytes:
    """Return the XML of a network of libvirt."""
    return call("net-dumpxml", "--network", name)


def _contents(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    with open(file, "rb", closefd=False) as opened:
        return opened.read()
