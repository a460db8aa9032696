# SPDX-License-Identifier: Apache-2.0
"""The state of a host in memory: clocks, processes, namespaces and open files.

The state is small plain data. The same calls give the same state: nothing here is
random, reads the real host, or is shared between two states.
"""

from tapster.model import Process
from tapster.testing.space import FakeDevice, Space

PIDNS = 4026531836
"""The inode of the first pid namespace: PROC_PID_INIT_INO in the kernel."""
TICKS = 100
"""Clock ticks a second: USER_HZ."""


class World:
    """The whole state of a host. Cheap to copy."""

    __slots__ = (
        "boot",
        "boottime",
        "cookies",
        "descriptors",
        "files",
        "handles",
        "inhabitants",
        "numbers",
        "own",
        "paths",
        "processes",
        "spaces",
        "wallclock",
    )

    def __init__(self) -> None:
        self.boot = 1
        self.boottime = 1000.0
        self.wallclock = 1_700_000_000.0
        self.numbers = 0
        """The last number given to an open file, a handle, a group or a start."""
        self.cookies = 0
        self.spaces: dict[int, Space] = {}
        """The namespaces, by cookie."""
        self.paths: dict[str, int] = {}
        """The cookie of each namespace that has a path, by path."""
        self.handles: dict[int, int] = {}
        """The cookie of the namespace that each open handle keeps alive."""
        self.files: dict[int, int] = {}
        """The cookie of the namespace that each open tap or macvtap keeps alive."""
        self.descriptors: dict[int, int] = {}
        """The open file behind each descriptor that was handed out."""
        self.processes: dict[int, Process] = {}
        self.inhabitants: dict[int, int] = {}
        """The cookie of the namespace that a process is in, by pid."""
        self.own = self.new_space()

    def copy(self) -> "World":
        twin = World.__new__(World)
        twin.boot = self.boot
        twin.boottime = self.boottime
        twin.wallclock = self.wallclock
        twin.numbers = self.numbers
        twin.cookies = self.cookies
        twin.spaces = {cookie: space.copy() for cookie, space in self.spaces.items()}
        twin.paths = self.paths.copy()
        twin.handles = self.handles.copy()
        twin.files = self.files.copy()
        twin.descriptors = self.descriptors.copy()
        twin.processes = self.processes.copy()
        twin.inhabitants = self.inhabitants.copy()
        twin.own = self.own
        return twin

    @property
    def boot_id(self) -> str:
        return f"00000000-0000-4000-8000-{self.boot:012}"

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    # Namespaces

    def new_space(self) -> int:
        """Make a namespace and return its cookie. A path, a handle, a file or a process
        must keep it alive."""
        self.cookies += 1
        self.spaces[self.cookies] = Space()
        return self.cookies

    def bury(self) -> None:
        """End the namespaces that nothing keeps alive, with their devices."""
        kept = {
            self.own,
            *self.paths.values(),
            *self.handles.values(),
            *self.files.values(),
            *self.inhabitants.values(),
        }
        for cookie in self.spaces.keys() - kept:
            del self.spaces[cookie]

    # Open files

    def open(self, cookie: int) -> int:
        """Open a file from inside a namespace. The file keeps the namespace alive."""
        file = self.number()
        self.files[file] = cookie
        return file

    def close(self, file: int) -> None:
        """Close a file for the last time."""
        del self.files[file]
        for space in self.spaces.values():
            if file in space.queues:
                space.detach(file)
        self.bury()

    # Processes

    def start(self, pid: int, cookie: int) -> Process:
        """Start a process; ValueError if the pid is in use."""
        if pid in self.processes:
            raise ValueError(f"process {pid} runs already")
        # The number distinguishes two processes of one pid that start at the same
        # moment.
        start = int(self.boottime * TICKS) + self.number()
        self.processes[pid] = Process(pid, start, PIDNS)
        self.inhabitants[pid] = cookie
        return self.processes[pid]

    def end(self, pid: int) -> None:
        del self.processes[pid]
        del self.inhabitants[pid]
        self.bury()

    def reboot(self) -> None:
        """Begin another boot. Only the wall clock and the boot number go on."""
        wallclock, boot = self.wallclock, self.boot
        self.__init__()  # type: ignore[misc]
        self.wallclock, self.boot = wallclock, boot + 1

    # Showing

    def render(self) -> str:
        """Return the state as text: equal for states that no caller can tell apart."""
        lines = [
            f"boot {self.boot} up {self.boottime:.3f} clock {self.wallclock:.3f}",
            *(
                f"process {pid} {process.start}"
                for pid, process in sorted(self.processes.items())
            ),
        ]
        for cookie, space in sorted(self.spaces.items()):
            paths = [path for path, of in sorted(self.paths.items()) if of == cookie]
            lines.append(f"netns {cookie} {' '.join(paths)} next {space.counter}")
            lines += [
                _line(space, device) for _, device in sorted(space.devices.items())
            ]
        return "\n".join(lines) + "\n"


def _line(space: Space, device: FakeDevice) -> str:
    """Return a device as text: the fields that differ from the defaults."""
    plain = FakeDevice(device.ifindex, device.name, device.kind, device.mac)
    fields = [
        f"{key}={value}"
        for key, value, usual in zip(device._fields, device, plain, strict=True)
        if value != usual
    ]
    if queues := space.open_queues(device.ifindex):
        fields.append(f"queues={queues}")
    head = f"  {device.ifindex} {device.name} {device.kind or '-'} {device.mac}"
    return " ".join([head, *fields])
