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
from tapster.kernel.failure import has
from tapster.light import Any

LIBRARY = "libnftables.so.1"
NETLINK_NETFILTER = 12
NFT_CTX_OUTPUT_JSON = 1 << 4

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
