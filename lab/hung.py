# SPDX-License-Identifier: Apache-2.0
"""A file on a server that does not answer, as a hard mount of NFS is when its server is
away.

The server is a thread of this program and speaks FUSE (linux/fuse.h): it answers until
the file is open, and never again.

`python -m lab.hung FOLDER` mounts it there, opens FOLDER/file, prints a line, and waits
for the end of its input.
"""

import ctypes
import os
import select
import stat
import struct
import sys
import threading

INIT, LOOKUP, GETATTR, OPEN = 26, 1, 3, 14
VERSION = (7, 31)
_IN = struct.Struct("IIQQIIII")  # fuse_in_header
_OUT = struct.Struct("IiQ")  # fuse_out_header
_ATTRIBUTES = struct.Struct("6Q10I")  # fuse_attr
NOT_SUPPORTED = -38
LONGEST = 15.0
"""Seconds after which the server ends, even if nobody tells it to. Until then, every
program that asks for the attributes of the file waits."""


def mount(folder: str) -> int:
    """Mount the file system on a folder; return the server's descriptor."""
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hung", folder.encode(), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    return fuse


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
    return _ATTRIBUTES.pack(node, *[0] * 8, mode, 1, *[0] * 5)


def serve(fuse: int) -> None:
    """Answer until the file has been opened."""
    while True:
        _, operation, unique, node, *_ = _IN.unpack_from(os.read(fuse, 1 << 17))
        answer, error = b"", 0
        if operation == INIT:
            answer = struct.pack("IIII", *VERSION, 0, 0).ljust(64, b"\0")
        elif operation == LOOKUP:
            # The kernel asks for the attributes again each time: they last 0 s.
            answer = struct.pack("QQQQII", 2, 0, 0, 0, 0, 0) + _attributes(2)
        elif operation == GETATTR:
            answer = struct.pack("QII", 0, 0, 0) + _attributes(node)
        elif operation == OPEN:
            answer = struct.pack("QII", 1, 0, 0)
        else:
            error = NOT_SUPPORTED
        os.write(fuse, _OUT.pack(_OUT.size + len(answer), error, unique) + answer)
        if operation == OPEN:
            return


def main() -> None:
    folder = sys.argv[1]
    fuse = mount(folder)
    server = threading.Thread(target=serve, args=[fuse], daemon=True)
    server.start()
    os.open(f"{folder}/file", os.O_RDONLY)  # open() would ask for more
    server.join()
    print("open", flush=True)
    select.select([sys.stdin], [], [], LONGEST)
    os.close(fuse)  # the kernel gives up; else to close the file would wait


if __name__ == "__main__":
    main()
