"""What a publication costs, and whether NFD sees it at once.

NFD's worker (0.19) watches features.d, takes the first event of a burst and throws away what comes
within a second: if that first event was not the finished file, the labels wait for the next minute.
The same limiter is built here over inotify. For each publication it takes one event, reads what is
there at that instant, and then rests; what it read is the new file or it is not. Beside ours: a
plain rename from a dot file, and a write in place.
"""

import ctypes
import os
import select
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from threading import Thread

from report import Table

from xelink.nfd.writer import Publisher

PUBLICATIONS = 100
SIZE = 4000
# modify, attrib, moved from, moved to, create, delete: what NFD's watcher, fsnotify, asks for
_EVENTS = 0x002 | 0x004 | 0x040 | 0x080 | 0x100 | 0x200
_HEADER = struct.Struct("iIII")


class Watch:
    """A directory's events."""

    def __init__(self, directory: Path) -> None:
        """Begin to watch."""
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if libc.inotify_add_watch(self.descriptor, os.fsencode(directory), _EVENTS) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def wait(self) -> None:
        """Wait for an event."""
        select.select([self.descriptor], [], [], 10)

    def drain(self) -> int:
        """Take all events; give how many there were."""
        events = 0
        try:
            while data := os.read(self.descriptor, 1 << 16):
                while data:
                    length = _HEADER.unpack_from(data)[3]
                    data = data[_HEADER.size + length :]
                    events += 1
        except BlockingIOError:
            pass
        return events


def ours(file: Path) -> Callable[[bytes], None]:
    """Publish as the sidecar does."""
    publisher = Publisher(file, file.parent)
    publisher.prepare()
    return publisher.publish


def renamed(file: Path) -> Callable[[bytes], None]:
    """Write a dot file beside it, synchronize, rename."""

    def publish(content: bytes) -> None:
        hidden = file.with_name(f".{file.name}")
        with hidden.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        hidden.rename(file)

    return publish


def in_place(file: Path) -> Callable[[bytes], None]:
    """Overwrite the current file."""

    def publish(content: bytes) -> None:
        with file.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())

    return publish


def look(watch: Watch, file: Path, found: list[bytes | None]) -> None:
    """Wait for the first event, and read what is there at that instant."""
    watch.wait()
    try:
        found.append(file.read_bytes())
    except OSError:
        found.append(None)


def main() -> None:
    """Print the table."""
    columns = ("how", "ms", "events for each", "seen whole at the first event, of 100")
    table = Table("publication", columns)
    for name, how in (
        ("ours", ours),
        ("dot file, fsync, rename", renamed),
        ("written in place", in_place),
    ):
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, "labels.txt")
            publish = how(file)
            publish(b"first\n")
            watch = Watch(file.parent)
            times, events, seen = [], 0, 0
            for number in range(PUBLICATIONS):
                content = (f"{number}=".ljust(SIZE, "x") + "\n").encode()
                found: list[bytes | None] = []
                looking = Thread(target=look, args=(watch, file, found))
                looking.start()
                started = time.perf_counter()
                publish(content)
                times.append(time.perf_counter() - started)
                looking.join()
                events += watch.drain()
                seen += found == [content]
            os.close(watch.descriptor)
        table.row(name, median(times) * 1000, events / PUBLICATIONS, seen)


if __name__ == "__main__":
    main()
