"""The processes that listen on a port of this machine, as Linux's ``/proc`` shows them. Blocking: call it in a thread.

If ``/proc`` does not show them (another system, a sandbox), every answer is "no one known", and nothing is concluded.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"
_NAMED_ARGUMENTS = 3
_LONGEST_NAME = 120

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that listens. ``pid`` is None if it belongs to another user, whose files cannot be read."""

    pid: int | None
    name: str = ""

    def __str__(self) -> str:
        if self.pid is None:
            return "a process of another user"
        return f"process {self.pid} ({self.name})" if self.name else f"process {self.pid}"


def holders(host: str, port: int) -> list[Holder]:
    """The listeners that a connection to this address would reach; empty if there are none or they cannot be found
    out.
    """
    inodes = set(_listening(host, port))
    if not inodes:
        return []
    found = [pid for pid in _pids() if not inodes.isdisjoint(_sockets(pid))]
    return [Holder(pid, _name(pid)) for pid in found] or [Holder(None)]


def belongs_to(pid: int, leader: int) -> bool:
    """Whether the process is in the process group of `leader`, or descends from it."""
    seen: set[int] = set()
    while pid > 1 and pid not in seen:
        seen.add(pid)
        try:
            if pid == leader or os.getpgid(pid) == leader:
                return True
            # The name, in parentheses, may have blanks; the parent is the second field after it.
            pid = int(
                Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            )
        except (OSError, ValueError, IndexError):
            return False
    return False


def _listening(host: str, port: int) -> Iterator[str]:
    """The inodes of the sockets."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except (OSError, ValueError):
            continue
        for line in lines:
            fields = line.split()
            address, _, number = fields[1].rpartition(":")
            if fields[3] == _LISTEN and int(number, 16) == port and _reaches(host, _parsed(address)):
                yield fields[9]


def _parsed(address: str) -> Address:
    """The kernel writes words of four bytes in the machine's own order."""
    words = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    parsed: Address = ipaddress.ip_address(packed)
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _reaches(host: str, listening: Address) -> bool:
    """Whether a connection to `host` can be answered by a socket that listens on this address."""
    if listening.is_unspecified:
        return True
    try:
        wanted = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return listening.is_loopback if host == "localhost" else False
    return wanted == listening or (wanted.is_unspecified and listening.is_loopback)


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208
    except OSError:
        return []


def _sockets(pid: int) -> set[str]:
    found = set()
    folder = f"/proc/{pid}/fd"
    try:
        for number in os.listdir(folder):  # noqa: PTH208 - thousands of them
            # It may be closed by now.
            with suppress(OSError):
                target = os.readlink(f"{folder}/{number}")  # noqa: PTH115 - the same
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    except OSError:
        return set()
    return found


def _name(pid: int) -> str:
    """The program and its first arguments, without folders, and without options, which may hold secrets."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    named = []
    for argument in arguments[:_NAMED_ARGUMENTS]:
        if argument.startswith("--"):
            break
        named.append(argument.rpartition("/")[2])
    return " ".join(filter(None, named))[:_LONGEST_NAME]
