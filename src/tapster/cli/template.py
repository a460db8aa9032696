# SPDX-License-Identifier: Apache-2.0
"""Fill in configuration files of a VMM, and remove them when the VMM has ended."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from tapster.errors import KernelError, RequestError
from tapster.kernel.files import absolute
from tapster.light import NamedTuple

MAX_SIZE = 1 << 22


class ConfigTemplate(NamedTuple):
    """The text of a template, and where the filled-in file belongs."""

    text: str
    destination: str


def read(pairs: Sequence[str]) -> list[ConfigTemplate]:
    """Read the templates that are given as IN=OUT. Raises RequestError."""
    templates = [_read(pair) for pair in pairs]
    for number, template in enumerate(templates):
        if any(
            template.destination == other.destination for other in templates[:number]
        ):
            raise RequestError(f"--template: {template.destination!r} is written twice")
    return templates


def _read(pair: str) -> ConfigTemplate:
    source, equals, destination = pair.partition("=")
    if not source or not destination or not equals:
        raise RequestError(f"--template {pair!r} is not IN=OUT, the paths of two files")
    try:
        with open(source, "rb") as file:
            text = file.read(MAX_SIZE + 1).decode(errors="surrogateescape")
        same = os.path.exists(destination) and os.path.samefile(source, destination)
    except OSError as error:
        raise RequestError(f"--template {source!r}: {error.strerror}") from None
    if same:
        raise RequestError(f"--template would write over itself: {source!r}")
    if len(text) > MAX_SIZE:
        raise RequestError(f"--template {source!r} has more than {MAX_SIZE} bytes")
    return ConfigTemplate(text, absolute(destination))


def write(path: str, text: str, owner: int | None) -> Callable[[], None]:
    """Write a file that only its owner can read; return what removes it again.

    The owner is the caller, or the user id `owner` if the caller may give files away.
    No reader sees a part of the file.
    """
    partial = f"{path}.{os.getpid()}.tmp"
    try:
        with suppress(FileNotFoundError):  # of a killed process with the same id
            os.unlink(partial)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = open(  # noqa: SIM115 - open until it is removed
            os.open(partial, flags, 0o600), "wb"
        )
        try:
            file.write(text.encode(errors="surrogateescape"))
            file.flush()
            if owner is not None and os.geteuid() == 0:
                os.fchown(file.fileno(), owner, -1)
            os.rename(partial, path)
        except BaseException:
            file.close()
            os.unlink(partial)
            raise
    except OSError as error:
        raise KernelError(error.errno or 0, f"writing {path!r}") from error

    def remove() -> None:
        # Another program may have put its own file there. An open file keeps its inode.
        with file, suppress(OSError):
            if os.path.samestat(os.lstat(path), os.fstat(file.fileno())):
                os.unlink(path)

    return remove
