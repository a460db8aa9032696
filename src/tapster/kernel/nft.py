# SPDX-License-Identifier: Apache-2.0
"""libnftables: commands in the language of nft(8), answers in its JSON.

Commands are not JSON: JSON cannot describe a set of header fields that have no name,
nor an element with a limit.
"""

import ctypes
import json
import os
import socket
from errno import EBADMSG
from functools import cache
from threading import Lock

from tapster.errors import (
    KernelError,
    MissingCapability,
    NftRefused,
    ServiceUnavailable,
)
from tapster.kernel import netns
from tapster.kernel.failure import failure, has
from tapster.light import Any, Iterator, cached_property, closing, contextmanager

LIBRARY = "libnftables.so.1"
NETLINK_NETFILTER = 12
NFT_CTX_OUTPUT_JSON = 1 << 4

Listed = list[dict[str, Any]]
"""Objects, as nft's JSON has them."""

_lock = Lock()
"""The library keeps its list of devices in global variables."""


class Nft:
    """A connection to nftables in the namespace of the thread that opened it."""

    def __init__(self) -> None:
        _check_usable()
        self._library = library()
        with _lock:
            # The library opens its socket without close-on-exec.
            before = _open_fds()
            self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
            try:
                for fd in _open_fds() - before:
                    os.set_inheritable(fd, False)
            except BaseException:
                self._library.nft_ctx_free(self._context)
                raise
        self._library.nft_ctx_output_set_flags(self._context, NFT_CTX_OUTPUT_JSON)
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> list[dict[str, Any]]:
        """Run commands as one transaction. Return the objects that they list.

        At every run the library lists the devices of the calling thread's namespace,
        to translate names. So call this in a namespace without devices: a thousand
        devices take 20 ms, and the library would take the index 7 for a device that
        is called `7`.
        """
        _check_usable()
        with _lock:
            failed = self._library.nft_run_cmd_from_buffer(
                self._context, commands.encode()
            )
            said = self._library.nft_ctx_get_output_buffer(self._context)
            error = self._library.nft_ctx_get_error_buffer(self._context).decode()
        if failed:
            raise _refusal(error)
        try:
            return list(json.loads(said)["nftables"]) if said else []
        except ValueError as error:
            # nftables 1.0.6 reads the flags of a table from freed memory, and stops
            # its output where that is no text.
            raise KernelError(
                EBADMSG, "asking nftables", "its answer is cut off"
            ) from error

    def close(self) -> None:
        with _lock:
            self._library.nft_ctx_free(self._context)


class NamespaceNft:
    """nftables in one network namespace. Errors are Tapster's own."""

    def __init__(self, netns: int) -> None:
        """`netns` is a descriptor of the namespace, which the caller keeps open."""
        self._netns = netns

    def run(self, commands: str) -> None:
        """Run commands as one transaction."""
        with self._asking():
            self._changes.run(commands)

    def list(self, what: str) -> Listed:
        """Return the objects that `nft list WHAT` shows."""
        # A new connection each time: one that is kept relies on its cache while the
        # lower 16 bits of the kernel's generation number are the same.
        with self._asking(), closing(self._connect()) as fresh:
            return fresh.run(f"list {what}")

    def example(self, commands: str, what: str) -> Listed:
        """Return what `list` would return in an empty namespace after commands."""
        # In a namespace of its own, so it takes part in nothing.
        with self._asking():
            empty = netns.new_empty()
            try:
                with netns.inside(empty), closing(Nft()) as example:
                    example.run(commands)
                    return example.run(f"list {what}")
            finally:
                os.close(empty)

    def close(self) -> None:
        """Close what is kept open."""
        if "_changes" in self.__dict__:
            self._changes.close()
        if "_nowhere" in self.__dict__:
            os.close(self._nowhere)

    @cached_property
    def _changes(self) -> Nft:
        # Keep it: to close one after a deletion takes the kernel 12 ms.
        return self._connect()

    @cached_property
    def _nowhere(self) -> int:
        """A namespace without devices, for libnftables; see Nft.run."""
        return netns.new_empty()

    def _connect(self) -> Nft:
        with netns.inside(self._netns):
            return Nft()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            with netns.inside(self._nowhere):
                yield
        except OSError as error:
            raise failure(error, "asking nftables", "CAP_SYS_ADMIN") from error


def _check_usable() -> None:
    if not has("CAP_NET_ADMIN"):
        raise MissingCapability(
            "asking nftables needs CAP_NET_ADMIN: run as root",
            capability="CAP_NET_ADMIN",
        )
    # If the library cannot open a socket, it ends the process.
    for family in (socket.NETLINK_ROUTE, NETLINK_NETFILTER):
        socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family
        ).close()


def _open_fds() -> set[int]:
    fds = map(int, os.listdir("/proc/self/fd"))
    return {fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")}


def _refusal(said: str) -> NftRefused:
    # Further lines show the place in the command.
    _, mark, reason = said.partition("Error: ")
    return NftRefused(f"nftables: {reason.splitlines()[0] if mark else said.strip()}")


@cache
def library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise ServiceUnavailable(
            f"filters and outbound rates need {LIBRARY}, which is not installed: "
            "apt install libnftables1, or dnf install nftables-libs"
        ) from None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    return library
