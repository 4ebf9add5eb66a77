"""Whom a request is for, and what is none."""

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xelink.daemon.http_requests import (
    MalformedRequestError,
    head_end,
    is_answered,
    own_names,
    parse,
    requested_name,
)

NAMES = own_names(
    "Node-1", {"NODE_NAME": "node-1.lan", "POD_NAME": "xpum-x7"}, frozenset({"S.svc."})
)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:29998", "10.0.0.7", "[::1]", "[::1]:29998", "[fd00::7]:1"),
        *("localhost", "LOCALHOST:80", "localhost.", "node-1", "NODE-1:29998", "node-1.lan"),
        *("xpum-x7", "s.svc", "S.SVC.:29998", "[::ffff:10.0.0.7]"),
    ],
)
def test_addresses_and_our_own_names_are_answered(host: str) -> None:
    assert is_answered(host, NAMES)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "localhost.evil.example",
            "node-1.evil.example",
            "127.0.0.1.evil.example",
        ),
        *(
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "127.0.0.01",
            "::1",
            "[127.0.0.1]",
            "[::1",
            "[node-1]",
        ),
        *(
            "",
            " ",
            ".",
            "localhost:x",
            "localhost:80:80",
            "localhost/",
            "user@localhost",
            "local host",
        ),
        *("[fe80::1%25eth0]", "node-1..", "*", "xn--ls8h", "a" * 300, "1.2.3.4.5", "\xb2.0.0.1"),
    ],
)
def test_whatever_else_is_not(host: str) -> None:
    assert not is_answered(host, NAMES)


def test_any_name_is_answered_where_that_was_asked_for_and_no_name_by_old_clients() -> None:
    assert is_answered("evil.example", own_names("", {}, frozenset({"*"})))
    assert is_answered(None, NAMES)


def test_a_variable_that_is_not_set_is_no_name() -> None:
    assert own_names("", {"NODE_NAME": ""}, frozenset()) == {"localhost"}


@given(st.text())
def test_a_name_is_plain_or_nothing(host: str) -> None:
    name = requested_name(host)
    assert name is None or (name == name.lower() and name.isascii())


def test_a_target_with_an_authority_is_for_that_one() -> None:
    request = parse(b"GET http://evil.example:1/readyz?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert request[:4] == ("GET", "/readyz", "x=1", "evil.example:1")
    assert parse(b"GET http://evil.example HTTP/1.1\r\n\r\n").host == "evil.example"


def test_a_head_is_read_as_it_is_written() -> None:
    text = b"HEAD /metrics HTTP/1.1\r\nHOST:\t[::1]:1 \nAccept: a\r\nAccept:  b\r\nX:\r\n\r\n"
    assert parse(text) == (
        *("HEAD", "/metrics", "", "[::1]:1"),
        {"host": "[::1]:1", "accept": "a, b", "x": ""},
    )
    assert parse(b"GET / HTTP/1.0\r\n\r\n") == ("GET", "/", "", None, {})


@given(st.binary(max_size=200))
def test_bytes_are_a_request_or_a_malformed_one(text: bytes) -> None:
    with suppress(MalformedRequestError):
        parse(text)


@given(st.lists(st.binary(max_size=8)), st.sampled_from([b"\r\n\r\n", b"\n\n", b"\n\r\n"]))
def test_the_end_of_a_head_is_found_in_whatever_pieces_it_comes(
    pieces: list[bytes], end: bytes
) -> None:
    head = bytearray()
    for piece in [*pieces, *(end[at : at + 1] for at in range(len(end))), b"more"]:
        before = len(head)
        head += piece
        found = head_end(head, before)
        assert found == head_end(bytes(head))
        if found is not None:
            assert head[:found].endswith((b"\n\n", b"\n\r\n"))
            return
    pytest.fail("not found")


@pytest.mark.parametrize(
    "piece", [b"\n", b"\r", b": ", b" ", b"a:\t\n", b"a: b \t\r\n", b"a\n", b"["]
)
def test_to_read_a_head_takes_time_in_proportion_to_its_length(piece: bytes) -> None:
    def seconds(times: int) -> float:
        head = b"GET / HTTP/1.1\r\nHost: " + piece * times + b"\r\n\r\n"
        taken = []
        for _ in range(5):
            began = time.process_time()
            head_end(head)
            with suppress(MalformedRequestError):
                requested_name(parse(head).host or "")
            taken.append(time.process_time() - began)
        return min(taken)

    # Quadratic, it would take a thousand times as long and more.
    assert seconds(64_000) < 200 * max(seconds(2_000), 1e-4)
