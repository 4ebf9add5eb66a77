"""Run a program as systemd would by a unit: without capabilities, below its filters.

    python -m tests.deployment.confined UNIT PROGRAM ARGUMENT ...

systemd is what lists the system calls of its sets, and libseccomp, which systemd uses, filters. The
mounts of the unit are not made here.
"""

import ctypes
import errno
import os
import re
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.deployment.rendering import run

LIBRARY = "libseccomp.so.2"

# linux/prctl.h
_DROP_CAPABILITY, _CAPABILITIES = 24, 64
_NO_NEW_PRIVILEGES, _DENY_WRITE_EXECUTE, _REFUSE_GAIN = 38, 65, 1
# seccomp.h: what a filter does with a call
_ALLOW, _REFUSE, _NOT_EQUAL, _EQUAL = 0x7FFF0000, 0x00050000, 1, 4
_UNKNOWN_CALL = -1


def is_possible() -> bool:
    """Tell whether this machine has what it takes."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return os.geteuid() == 0 and shutil.which("systemd-analyze") is not None


def directives(unit: Path) -> dict[str, list[str]]:
    """Return what a unit says, each name with all of its values."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def allowed_calls(filters: Sequence[str]) -> frozenset[str]:
    """Return the system calls of `SystemCallFilter=` lines, of which those with ~ take away."""
    listed = run("systemd-analyze", "syscall-filter", "--no-pager")
    sets: dict[str, list[str]] = {}
    name = ""
    for line in listed.splitlines():
        if line.startswith("@"):
            name = line
        elif name and (member := line.strip()) and not member.startswith("#"):
            sets.setdefault(name, []).append(member)
    calls: set[str] = set()
    for words in filters:
        named = _resolved(words.removeprefix("~").split(), sets)
        calls = calls - named if words.startswith("~") else calls | named
    return frozenset(calls | _resolved(["@default"], sets))


def _resolved(names: Sequence[str], sets: Mapping[str, Sequence[str]]) -> set[str]:
    found: set[str] = set()
    for name in names:
        found |= _resolved(sets[name], sets) if name.startswith("@") else {name}
    return found


class _Argument(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint),
        ("comparison", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("mask", ctypes.c_uint64),
    )


def _filter(library: ctypes.CDLL, otherwise: int) -> ctypes.c_void_p:
    library.seccomp_init.restype = ctypes.c_void_p
    return ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(otherwise)))


def _load(library: ctypes.CDLL, context: ctypes.c_void_p) -> None:
    if library.seccomp_load(context) != 0:
        sys.exit("the filter cannot be loaded")


def confine(told: Mapping[str, Sequence[str]]) -> None:
    """Take from this process, for good, what the unit does not allow."""
    process, library = ctypes.CDLL(None, use_errno=True), ctypes.CDLL(LIBRARY)
    kept = told["CapabilityBoundingSet"][0].split()
    if kept or told["AmbientCapabilities"] != [""]:
        sys.exit("it knows no way to leave a capability")
    for capability in range(_CAPABILITIES):
        process.prctl(_DROP_CAPABILITY, capability, 0, 0, 0)  # EINVAL for those there are not
    if told["MemoryDenyWriteExecute"] == ["yes"]:
        process.prctl(_DENY_WRITE_EXECUTE, _REFUSE_GAIN, 0, 0, 0)  # EINVAL before Linux 6.3
    if process.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    families = {getattr(socket, name) for name in told["RestrictAddressFamilies"][0].split()}
    refused = _REFUSE | errno.EAFNOSUPPORT
    context = _filter(library, _ALLOW)
    call = library.seccomp_syscall_resolve_name(b"socket")
    for family in {*map(int, socket.AddressFamily)} - families:
        only = _Argument(0, _EQUAL, family, 0)
        library.seccomp_rule_add_array(context, refused, call, 1, ctypes.byref(only))
    _load(library, context)
    context = _filter(library, _REFUSE | getattr(errno, told["SystemCallErrorNumber"][0]))
    for name in allowed_calls(told["SystemCallFilter"]):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number != _UNKNOWN_CALL:
            library.seccomp_rule_add_array(context, _ALLOW, number, 0, None)
    _load(library, context)


def main(unit: str, *command: str) -> None:
    """Become the program, confined."""
    confine(directives(Path(unit)))
    os.execv(command[0], command)  # noqa: S606 - ours, and no shell


if __name__ == "__main__":
    main(*sys.argv[1:])
