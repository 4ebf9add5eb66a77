"""What XPU Manager, or something between, can do to a GET of the metrics: a table of functions.

A row is a function of an `Exchange` and of its own keyword options, each with a default whose
type the option must have. It may answer well, send any bytes, wait, hang up or reset. To add one,
write it with `@misbehaviour` (its name is the function's, with hyphens; its docstring is what
`GET /control` shows). `refuse` is the server's own, because nothing is exchanged then.
"""

import gzip
import inspect
import random
import re
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

from xelink.simulators.xpu_manager.exchange import DAEMON_DOWN, HTML, NO_DEVICES, TEXT, Exchange
from xelink.simulators.xpu_manager.exposition import render

Misbehaviour: TypeAlias = Callable[..., None]
Option: TypeAlias = bool | int | float | str

REFUSE = "refuse"
_ROW = b"xpum_topology_link{"
_ROWS = re.compile(rb"^xpum_topology_link\{.*$", re.MULTILINE)
_NUMBERS = re.compile(rb'((?:device_id|subdevice_id|lane_count)="|\} )[0-9.]+')
_PIECE = 16_384
_SLOWEST = 0.001  # bytes per second

_table: dict[str, Misbehaviour] = {}

# Names, then functions; `misbehaviour` adds rows.
MISBEHAVIOURS: Mapping[str, Misbehaviour] = MappingProxyType(_table)

# What the health check answers while the metrics fail for a reason of the daemon's own.
UNHEALTHY: Mapping[str, bytes] = MappingProxyType(
    {"daemon-down": b"", "no-devices": b"failed to get devices (1)"}
)


def spelt(act: Misbehaviour) -> str:
    """Return the name that a function has in the table."""
    return act.__name__.strip("_").replace("_", "-")


def named(name: str) -> Misbehaviour:
    """Find a row of the table; raises `ValueError`."""
    if name not in _table:
        raise ValueError(f"unknown misbehaviour {name!r}; there are: {', '.join(sorted(_table))}")
    return _table[name]


def bound(act: Misbehaviour, options: Mapping[str, Option]) -> Callable[[Exchange], None]:
    """Return the misbehaviour with its options in place; raises `ValueError` for unknown ones."""
    known = {
        parameter.name: parameter.default
        for parameter in inspect.signature(act).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"{spelt(act)} takes {', '.join(known) or 'no options'}; not {option!r}"
            )
        wanted = type(known[option])
        if not isinstance(value, (int, float) if wanted is float else wanted):
            raise ValueError(f"{spelt(act)}: {option} must be of type {wanted.__name__}")  # noqa: TRY004 - one exception for one decision
    return partial(act, **options)


def describe() -> dict[str, str]:
    """Return every misbehaviour with its options and what it does, for people."""
    return {
        name: f"{_options(act)}{(act.__doc__ or '').strip().splitlines()[0]}"
        for name, act in sorted(_table.items())
    }


def _options(act: Misbehaviour) -> str:
    options = [
        f"{parameter.name}={parameter.default!r}"
        for parameter in inspect.signature(act).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    return f"({', '.join(options)}) " if options else ""


def misbehaviour(act: Misbehaviour) -> Misbehaviour:
    """Add a row to the table."""
    _table[spelt(act)] = act
    return act


# --- Answers in good form that are no exposition ---


@misbehaviour
def status(exchange: Exchange, *, code: int = 503, body: str = "", kind: str = HTML) -> None:
    """Answer with this status code and body."""
    exchange.answer(body.encode(), code, kind)


@misbehaviour
def daemon_down(exchange: Exchange) -> None:
    """Answer 500 with a body that is a Prometheus comment: xpumd is down or has just restarted."""
    exchange.answer(DAEMON_DOWN, 500)


@misbehaviour
def no_devices(exchange: Exchange) -> None:
    """Answer 500 with a body that is a Prometheus comment: Level Zero found no device."""
    exchange.answer(NO_DEVICES, 500)


@misbehaviour
def unauthorized(exchange: Exchange, *, sleep: float = 0.0) -> None:
    """Answer 401, whatever the credentials, after sleeping so many seconds."""
    exchange.wait(sleep)
    exchange.unauthorized()


@misbehaviour
def redirect(exchange: Exchange, *, location: str = "/login", code: int = 302) -> None:
    """Point to another address."""
    exchange.answer(b"", code, HTML, location=location)


@misbehaviour
def no_content(exchange: Exchange) -> None:
    """Answer 204, which has no body."""
    exchange.send(exchange.head(204))


@misbehaviour
def empty(exchange: Exchange) -> None:
    """Answer 200 with a body of no bytes."""
    exchange.answer(b"")


@misbehaviour
def comments_only(exchange: Exchange) -> None:
    """Answer 200 with the comment block alone."""
    lines = exchange.body.split(b"\n")
    exchange.answer(b"\n".join(line for line in lines if line.startswith(b"#")))


@misbehaviour
def text_html(exchange: Exchange) -> None:
    """Send the good answer with the content type of 1.2.x."""
    exchange.answer(exchange.body, kind=HTML)


@misbehaviour
def zipped(exchange: Exchange) -> None:
    """Send the good answer as gzip that nobody asked for."""
    exchange.answer(gzip.compress(exchange.body, 1), content_encoding="gzip")


@misbehaviour
def chunked(exchange: Exchange) -> None:
    """Send the good answer in chunks, without Content-Length."""
    exchange.send(exchange.head(content_type=TEXT, transfer_encoding="chunked"))
    body = exchange.body
    for at in range(0, len(body), _PIECE):
        piece = body[at : at + _PIECE]
        exchange.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    exchange.send(b"0\r\n\r\n")


@misbehaviour
def race(exchange: Exchange, *, device: int = 0) -> None:
    """Lose one GPU's own topology rows whenever GETs overlap, else answer well."""
    node = exchange.node.hide(device) if exchange.overlapping else exchange.node
    exchange.answer(render(node, exchange.scrape))


# --- Time ---


@misbehaviour
def delay(exchange: Exchange, *, by: float = 5.0) -> None:
    """Send the good answer after so many seconds, as a cold daemon does."""
    exchange.wait(by)
    exchange.answer(exchange.body)


@misbehaviour
def hang(exchange: Exchange) -> None:
    """Take the request and never answer."""
    exchange.wait()
    exchange.hang_up()


@misbehaviour
def hang_in_body(exchange: Exchange, *, after: int = 1000) -> None:
    """Send the head and so many bytes of the body, then nothing more."""
    exchange.send(_whole_head(exchange) + exchange.body[:after])
    exchange.wait()
    exchange.hang_up()


@misbehaviour
def drip_headers(exchange: Exchange, *, rate: float = 10.0) -> None:
    """Send the answer a byte at a time from its first one, so many bytes per second."""
    _drip(exchange, _whole_head(exchange) + exchange.body, rate)


@misbehaviour
def drip_body(exchange: Exchange, *, rate: float = 10.0) -> None:
    """Send the head at once and the body a byte at a time, so many bytes per second."""
    exchange.send(_whole_head(exchange))
    _drip(exchange, exchange.body, rate)


def _drip(exchange: Exchange, data: bytes, rate: float) -> None:
    for at in range(len(data)):
        exchange.send(data[at : at + 1])
        if exchange.wait(1 / max(rate, _SLOWEST)):
            exchange.hang_up()
            return


# --- Broken HTTP ---


@misbehaviour
def reset(exchange: Exchange) -> None:
    """Reset the connection instead of an answer."""
    exchange.reset()


@misbehaviour
def reset_in_body(exchange: Exchange, *, after: int = 1000) -> None:
    """Reset the connection after so many bytes of the body."""
    exchange.send(_whole_head(exchange) + exchange.body[:after])
    exchange.reset()


@misbehaviour
def close(exchange: Exchange) -> None:
    """Close the connection without a byte."""
    exchange.hang_up()


@misbehaviour
def not_http(exchange: Exchange) -> None:
    """Answer something that is no HTTP."""
    exchange.hang_up()
    exchange.send(b"SSH-2.0-OpenSSH_9.9\r\n")


@misbehaviour
def cut(exchange: Exchange, *, announced: str = "whole", share: float = 0.5) -> None:
    """Stop in the middle of a topology row, this share of the rows in, and close.

    `announced` is the Content-Length: `whole` (a client can notice), `cut` (it fits the cut body)
    or `none` (the end of the connection ends the body).
    """
    body = _cut(exchange.body, share)
    exchange.hang_up()
    lengths = {"whole": len(exchange.body), "cut": len(body)}
    if announced in lengths:
        head = exchange.head(content_type=TEXT, content_length=str(lengths[announced]))
    else:
        head = exchange.head(content_type=TEXT)
    exchange.send(head + body)


def _cut(body: bytes, share: float) -> bytes:
    rows = [match.start() for match in re.finditer(re.escape(_ROW), body)]
    at = rows[min(len(rows) - 1, int(len(rows) * share))] if rows else int(len(body) * share)
    return body[: at + len(_ROW) + 60]


@misbehaviour
def wrong_length(exchange: Exchange, *, by: int = 100) -> None:
    """Promise so many bytes more than come, then close; fewer where negative."""
    exchange.hang_up()
    length = max(0, len(exchange.body) + by)
    head = exchange.head(content_type=TEXT, content_length=str(length))
    exchange.send(head + exchange.body)


@misbehaviour
def endless(exchange: Exchange) -> None:
    """Send the good body again and again without an end."""
    exchange.hang_up()
    exchange.send(exchange.head(content_type=TEXT))
    while not exchange.wait(0):
        exchange.send(exchange.body + b"\n")


@misbehaviour
def endless_headers(exchange: Exchange) -> None:
    """Send header after header without an end."""
    exchange.hang_up()
    exchange.send(exchange.head().removesuffix(b"\r\n"))
    while not exchange.wait(0):
        exchange.send(b"X-Filler: " + b"x" * 1000 + b"\r\n")


@misbehaviour
def endless_continue(exchange: Exchange) -> None:
    """Send `100 Continue` again and again, and never more."""
    exchange.hang_up()
    while not exchange.wait(0):
        exchange.send(b"HTTP/1.1 100 CONTINUE\r\n\r\n" * 100)


@misbehaviour
def bad_chunk(exchange: Exchange) -> None:
    """Send a chunk whose length is no number."""
    exchange.hang_up()
    exchange.send(exchange.head(content_type=TEXT, transfer_encoding="chunked"))
    exchange.send(b"lots\r\n" + exchange.body)


@misbehaviour
def huge(exchange: Exchange, *, size: int = 10_000_000_000, announced: bool = True) -> None:
    """Send a body of comments, so many bytes long, and announce its length or not."""
    exchange.hang_up()
    if announced:
        exchange.send(exchange.head(content_type=TEXT, content_length=str(size)))
    else:
        exchange.send(exchange.head(content_type=TEXT))
    piece = (b"# " + b"x" * 77 + b"\n") * 1000
    sent = 0
    while sent < size and not exchange.wait(0):
        exchange.send(piece[: size - sent])
        sent += len(piece)


# --- A body that is no text, or no exposition ---


@misbehaviour
def garbage(exchange: Exchange, *, size: int = 100_000) -> None:
    """Answer 200 with random bytes."""
    exchange.answer(random.Random(size).randbytes(size))  # noqa: S311 - garbage, not secrets


@misbehaviour
def nul(exchange: Exchange) -> None:
    """Put a NUL after every brace of the good body."""
    exchange.answer(exchange.body.replace(b"{", b"{\0"))


@misbehaviour
def utf16(exchange: Exchange) -> None:
    """Answer with the good body as UTF-16."""
    exchange.answer(exchange.body.decode().encode("utf-16"))


@misbehaviour
def bad_utf8(exchange: Exchange) -> None:
    """Put a byte that is no UTF-8 into every vendor's name."""
    exchange.answer(exchange.body.replace(b"Intel(R)", b"Intel\xae"))


@misbehaviour
def bad_row(exchange: Exchange) -> None:
    """Spoil the last topology row: its value is no number."""
    body = exchange.body
    at = body.rfind(_ROW)
    end = body.find(b"\n", at) if at >= 0 else len(body)
    exchange.answer(body[:end] + b"x" + body[end:])


@misbehaviour
def many_rows(exchange: Exchange, *, rows: int = 1_000_000) -> None:
    """Repeat the topology rows of the good body until there are so many, of ever other vendors."""
    exchange.hang_up()
    exchange.send(exchange.head(content_type=TEXT))
    good = _ROWS.findall(exchange.body)
    for at in range(0, rows if good else 0, len(good)):
        if exchange.wait(0):
            break
        part = b"\n".join(good[: rows - at]) + b"\n"
        exchange.send(part.replace(b'vendor="', b'vendor="%x ' % at))


@misbehaviour
def long_numbers(exchange: Exchange, *, digits: int = 1000) -> None:
    """Write every id, lane count and value of the topology rows with so many digits."""
    number = rb"\g<1>" + b"9" * digits
    exchange.answer(_ROWS.sub(lambda row: _NUMBERS.sub(number, row[0]), exchange.body))


@misbehaviour
def long_line(exchange: Exchange, *, size: int = 2_000_000) -> None:
    """Make the vendor's name in the last topology row so many bytes long."""
    head, row, tail = exchange.body.rpartition(_ROW)
    exchange.answer(head + row + tail.replace(b'vendor="', b'vendor="' + b"x" * size, 1))


@misbehaviour
def injected(
    exchange: Exchange, *, label: str = "uuid", text: str = "\\ngpu.intel.com/forged=yes"
) -> None:
    """Put a text, as it is, at the end of a label's value in every topology row."""
    value = re.compile(rb'([{,]%s="[^"]*)' % re.escape(label.encode()))
    exchange.answer(
        _ROWS.sub(
            lambda row: value.sub(lambda found: found[1] + text.encode(), row[0]), exchange.body
        )
    )


@misbehaviour
def html(exchange: Exchange) -> None:
    """Answer 200 with somebody else's page, as a proxy does."""
    exchange.answer(b"<!doctype html>\n<title>Sign in</title>\n<h1>Sign in</h1>\n", kind=HTML)


def _whole_head(exchange: Exchange) -> bytes:
    return exchange.head(content_type=TEXT, content_length=str(len(exchange.body)))
