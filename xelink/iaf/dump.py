"""A look at the driver as text: every request and reply in hex, and the same look from that text.

    # xelink fabric dump 1
    # kernel 6.5.0-35-generic                what the dump was made with, one fact in a line
    # gpu {"id":0,"pci":"0000:29:00.0"}      a GPU on the bus, in the order of ids
    > 20000000...                            a request
    < 24000000...                            its reply; none follows where the driver was silent

Pure.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xelink.iaf.fabric import GpuOnBus
from xelink.iaf.wire import FRAME_LIMIT
from xelink.topology.model import GPU_LIMIT, TILE_LIMIT, Gpu

HEADING = "# xelink fabric dump 1"
SIZE_LIMIT = 8 << 20
"""Characters of the longest dump: a hundred times what a full node needs."""


_NO_DUMP = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)


class DumpError(ValueError):
    """A text that is no dump."""


class Exchanged(NamedTuple):
    """One request and its reply; None where there was none."""

    request: bytes
    reply: bytes | None


class Dump(NamedTuple):
    """What a dump has: facts for people, the GPUs on the bus, and all that was exchanged."""

    facts: tuple[str, ...]
    gpus: tuple[GpuOnBus, ...]
    frames: tuple[Exchanged, ...]


def write(dump: Dump) -> str:
    """Return the text of a dump."""
    lines = [HEADING, *(f"# {fact}" for fact in dump.facts)]
    lines += [f"# gpu {json.dumps(_entry(one), separators=(',', ':'))}" for one in dump.gpus]
    for request, reply in dump.frames:
        lines.append(f"> {request.hex()}")
        if reply is not None:
            lines.append(f"< {reply.hex()}")
    return "".join(f"{line}\n" for line in lines)


def read(text: str) -> Dump:
    """Return the dump in a text. Raises `DumpError`."""
    if len(text) > SIZE_LIMIT:
        raise DumpError(f"more than {SIZE_LIMIT} characters")
    lines = text.splitlines()
    if not lines or lines[0] != HEADING:
        raise DumpError(f"its first line is not {HEADING!r}")
    facts, gpus, frames = [], [], []
    for number, line in enumerate(lines[1:], start=2):
        mark, _, rest = line.partition(" ")
        try:
            if mark == "#" and rest.startswith("gpu "):
                gpus.append(_gpu(json.loads(rest.removeprefix("gpu "))))
                _require_few(gpus)
            elif mark == "#":
                facts.append(rest)
            elif mark == ">":
                frames.append(Exchanged(_bytes(rest), None))
            elif mark == "<":
                frames.append(frames.pop()._replace(reply=_bytes(rest)))
            else:
                _require_empty(line)
        except _NO_DUMP as error:
            raise DumpError(f"line {number}: {error}") from error
    return Dump(tuple(facts), tuple(gpus), tuple(frames))


def _require_empty(line: str) -> None:
    if line:
        raise ValueError("neither a fact nor a frame")


def _require_few(gpus: Sequence[GpuOnBus]) -> None:
    if len(gpus) > GPU_LIMIT:
        raise ValueError(f"more than {GPU_LIMIT} GPUs")


def _bytes(text: str) -> bytes:
    if len(text) > 2 * FRAME_LIMIT:
        raise ValueError("a frame that is too long")
    return bytes.fromhex(text)


def _entry(one: GpuOnBus) -> dict[str, Any]:
    gpu = one.gpu
    entry = {
        "id": gpu.id,
        "pci": gpu.bdf,
        "card": gpu.card,
        "numa": gpu.numa,
        "tiles": one.tiles,
    }
    return {key: value for key, value in entry.items() if value is not None}


def _gpu(entry: Mapping[str, Any]) -> GpuOnBus:
    numbers = [entry.get(name) for name in ("id", "numa", "tiles")]
    if any(number is not None and type(number) is not int for number in numbers):
        raise ValueError("not a number")
    if not 0 <= entry["id"] < GPU_LIMIT or not 0 <= entry.get("tiles", 0) <= TILE_LIMIT:
        raise ValueError("more GPUs or tiles than any node has")
    gpu = Gpu(int(entry["id"]), str(entry["pci"]), entry.get("card"), numa=entry.get("numa"))
    return GpuOnBus(gpu, entry.get("tiles"))
