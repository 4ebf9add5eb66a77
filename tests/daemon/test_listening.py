"""Which addresses a port is opened at, and what keeps it from being opened."""

import errno
import socket

import pytest

from tests.networks import needs_both_families
from xelink.daemon.listening import open_listener


@needs_both_families
@pytest.mark.parametrize("listen", [":0", "[::]:0"])
def test_every_address_is_those_of_both_families(listen: str) -> None:
    opened, address = open_listener(listen)
    with opened:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, int(address.rpartition(":")[2]))).close()


@needs_both_families
def test_a_port_that_is_taken_is_not_opened_for_the_other_family_alone() -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::", 0))
        other.listen()
        with pytest.raises(OSError, match="in use") as taken:
            open_listener(f":{other.getsockname()[1]}")
        assert taken.value.errno == errno.EADDRINUSE
