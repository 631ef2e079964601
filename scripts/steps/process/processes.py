"""The process table: finding and ending everything that a step started."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

#: Seconds between SIGTERM and SIGKILL.
GRACE: Final = 5.0

#: Seconds after SIGKILL: what is still there then hangs in the kernel.
_LAST_WAIT: Final = 2.0


class Process(NamedTuple):
    """One line of the process table."""

    pid: int
    parent: int
    group: int
    state: str


def process_table() -> Iterator[Process]:
    """Yield every process that is no zombie."""
    lines = _from_proc() if os.path.exists("/proc/self/stat") else _from_ps()
    return (process for process in lines if not process.state.startswith("Z"))


def _from_proc() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                # The program's name stands in parentheses, and may hold any character.
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                yield Process(int(name), int(fields[1]), int(fields[2]), fields[0].decode())


def _from_ps() -> Iterator[Process]:
    import subprocess

    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        pid, parent, group, state = line.split()
        yield Process(int(pid), int(parent), int(group), state)


class Family:
    """A child process and all that came from it: its process group, and descendants that left the group.

    Args:
        root: process id of the child.
        group: its process group; `None` if that is not its own.
        stranger: process id of a member of the group that is not to be waited for.

    """

    def __init__(self, root: int, group: int | None, stranger: int | None = None) -> None:
        self._group = group
        self._stranger = stranger
        self._known = {root}

    def members(self) -> set[int]:
        """Return the process ids of all that are alive. Who was seen once stays known when its parent ends."""
        table = [process for process in process_table() if process.pid != self._stranger]
        grown = True
        while grown:
            found = {one.pid for one in table if one.parent in self._known or one.group == self._group} - self._known
            self._known |= found
            grown = bool(found)
        return {process.pid for process in table if process.pid in self._known}

    def end(self, grace: float) -> bool:
        """Send SIGTERM, wait, and kill what is left; return whether that was necessary."""
        self._send(signal.SIGTERM)
        self._send(signal.SIGCONT)  # one that is stopped would not take notice
        if not self._remain(grace):
            return False
        deadline = time.monotonic() + _LAST_WAIT
        while time.monotonic() < deadline:
            self._send(signal.SIGKILL)
            if not self._remain(0.05):
                break
        return True

    def _remain(self, seconds: float) -> bool:
        deadline, pause = time.monotonic() + seconds, 0.005
        while self.members():
            if time.monotonic() >= deadline:
                return True
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        return False

    def _send(self, number: int) -> None:
        outside = self.members()
        if self._group is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)
            outside = {pid for pid in outside if not self._in_group(pid)}
        for pid in outside:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _in_group(self, pid: int) -> bool:
        try:
            return os.getpgid(pid) == self._group
        except ProcessLookupError:
            return True


def is_alive(group: int) -> bool:
    """Whether a process group has a member."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user: `sudo`
        return True
    return True
