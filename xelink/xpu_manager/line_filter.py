"""The lines that matter out of a stream of bytes, cut anywhere; constant memory.

A body is half a megabyte and more, the topology a sixth of it. The stream is searched chunk by
chunk with `bytes.rfind`, and only the lines of the two families are kept. Pure.
"""

from xelink.xpu_manager.origin import BEGINNING, described
from xelink.xpu_manager.samples import ends_name

_LINK = b"xpum_topology_link"
_PORTS = b"xpum_xelink_port_status"
_LINE_LIMIT = 1 << 20
_BLANKS = b" \t"

# How lines of XPU Manager 1.x begin, and a sample of 2.x in their place
_XPUM_1 = (b"xpum_", b"# HELP xpum_", b"# TYPE xpum_", b"#nodata")
_XPUM_2 = (b"hw_",)


class TooManyRowsError(Exception):
    """The body has more topology rows than any node: it cannot be used."""


class LineFilter:
    """Keeps the lines of `xpum_topology_link` and `xpum_xelink_port_status`."""

    def __init__(self, limit: int = 8 << 20, *, ports_follow: bool = False) -> None:
        """Keep at most `limit` bytes: 32 tiles, the most that XPU Manager knows, need 0.7 MB.

        Where `ports_follow`, states of ports are not looked for before the links: the exporter
        sorts its samples, and half of the time of a search is spent on what never comes.
        """
        self.links = bytearray()
        self.ports = bytearray()
        self.overlong = 0
        self.ports_lead = False
        """States of ports came before the links."""
        self.ports_follow = ports_follow
        self._limit = limit
        self._rest = bytearray()
        self._skipping = False
        self._is_xpum_1 = False
        self._is_xpum_2 = False
        self._beginning = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body. Raises `TooManyRowsError`."""
        if (room := BEGINNING - len(self._beginning)) > 0:
            self._beginning += chunk[:room]
        start = 0
        if self._rest or self._skipping:
            start = chunk.find(b"\n") + 1
            self._keep_rest(chunk[:start] if start else chunk)
            if not start:
                return
            if not self._skipping:
                line = bytes(self._rest)
                self._sift(line, 0, len(line))
            self._rest.clear()
            self._skipping = False
        end = chunk.rfind(b"\n") + 1
        if end > start:
            self._sift(chunk, start, end)
        self._keep_rest(chunk[max(start, end) :])

    def finish(self) -> None:
        """Take what came after the last newline: the real exporter ends without one."""
        if self._rest:
            self.feed(b"\n")

    @property
    def foreign(self) -> bool:
        """Whether the body is of XPU Manager 2.x."""
        return self._is_xpum_2 and not self._is_xpum_1

    @property
    def strange(self) -> str:
        """What the body is instead of XPU Manager's; empty where it is that."""
        return "" if self._is_xpum_1 or self._is_xpum_2 else described(bytes(self._beginning))

    def _keep_rest(self, rest: bytes) -> None:
        if self._skipping:
            return
        self._rest += rest
        if len(self._rest) > _LINE_LIMIT:
            self.overlong += 1
            self._skipping = True
            self._rest.clear()

    def _sift(self, block: bytes, start: int, end: int) -> None:
        if not self._is_xpum_1:
            self._is_xpum_1 = _has_line(block, _XPUM_1, start, end)
            if not self._is_xpum_1 and not self._is_xpum_2:
                self._is_xpum_2 = _has_line(block, _XPUM_2, start, end)
        had_links = bool(self.links)
        link = _keep(_LINK, self.links, block, start, end)
        if not self.ports_follow or self.links:
            port = _keep(_PORTS, self.ports, block, start, end)
            self.ports_lead |= port >= 0 and not had_links and not 0 <= link < port
        if len(self.links) + len(self.ports) > self._limit:
            raise TooManyRowsError(f"over {self._limit} bytes of topology rows")


def _has_line(block: bytes, beginnings: tuple[bytes, ...], start: int, end: int) -> bool:
    """Return whether a line begins with one of these."""
    return block.startswith(beginnings, start, end) or any(
        block.find(b"\n" + beginning, start, end) >= 0 for beginning in beginnings
    )


def _keep(name: bytes, kept: bytearray, block: bytes, start: int, end: int) -> int:
    """Keep the lines from the first sample to the last mention; return where the first begins."""
    # Most chunks have none; `rfind` finds that out in half the time that `find` takes.
    last = block.rfind(name, start, end)
    first = _first_sample(block, name, start, last + len(name)) if last >= 0 else -1
    if first >= 0:
        kept += memoryview(block)[first : block.find(b"\n", last) + 1]
    return first


def _first_sample(block: bytes, name: bytes, start: int, end: int) -> int:
    """Find the line that begins with `name` and no longer one: other lines mention it, too."""
    while (found := block.find(name, start, end)) >= 0:
        line = block.rfind(b"\n", start, found) + 1 or start
        if not block[line:found].strip(_BLANKS) and ends_name(block, found + len(name)):
            return line
        start = block.find(b"\n", found) + 1  # what else this line mentions begins no line
        if not start:
            break
    return -1
