"""Networks for tests: what this machine has, and namespaces with networks of our own."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from tests.patience import PATIENCE

ADDRESS = "fd00:29::7"
"""The node's address in a namespace that has IPv6 alone."""


@cache
def has_ipv6() -> bool:
    """Tell whether this machine has a loopback of IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_both_families = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))),
    reason="a network namespace takes root, and iproute2 and util-linux",
)


class Namespace:
    """A network namespace that lives as long as its process; programs are started into it."""

    def __init__(self, pid: int) -> None:
        self.before = ("nsenter", f"--net=/proc/{pid}/ns/net")
        """What starts a program in it."""

    def run(self, *words: str) -> str:
        """Run a program in it; give what it prints."""
        done = subprocess.run(
            [*self.before, *words], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def namespace(*commands: str) -> Iterator[Namespace]:
    """Make a network namespace by these commands of `ip`; skip where the kernel refuses one."""
    with subprocess.Popen(
        ["/usr/bin/env", "unshare", "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as holder:
        try:
            assert holder.stdout
            if not holder.stdout.readline():
                pytest.skip("no network namespace can be made here")
            made = Namespace(holder.pid)
            for command in commands:
                made.run("ip", *command.split())
            yield made
        finally:
            holder.kill()


IPV6_ALONE = (
    "link set lo up",
    "-4 address flush dev lo",
    f"-6 address add {ADDRESS}/128 dev lo",
)
"""No IPv4 at all, not even on loopback."""

IPV6_NODE = ("link set lo up", f"-6 address add {ADDRESS}/128 dev lo")
"""A node of an IPv6 cluster: of IPv4 it has what the kernel gives to loopback."""
