import asyncio
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from tests.patience import PATIENCE
from xelink.nfd.reader import SETTLED, FileState, Look, Reading, follow, look, read
from xelink.topology.model import Gpu, Link, Tile, Topology
from xelink.topology.nfd_format import FILE_LIMIT
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication, node_labels, render

NS = DEFAULT_NAMESPACE
NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
EXPIRY = NOW + timedelta(minutes=5)
TOPOLOGY = Topology(
    links=(Link(Tile(0, 0), Tile(1, 0), 16, 16), Link(Tile(0, 1), Tile(1, 1), 16, 16)),
    gpus=(Gpu(0, "0000:29:00.0"), Gpu(1, "0000:3a:00.0")),
)
OTHER = Topology(links=(Link(Tile(0, 0), Tile(1, 0), 8, 8),), gpus=TOPOLOGY.gpus)


def file(topology: Topology | None = TOPOLOGY, expiry: datetime | None = EXPIRY) -> bytes:
    return render(Publication(topology, expiry), NS)


def as_the_reference_writes(topology: Topology = TOPOLOGY) -> bytes:
    found = node_labels(Publication(topology), NS, summary=False)
    return "".join(f"{name}={value}\n" for name, value in found.items()).encode()


def seen(content: bytes | None, problem: str = "") -> Look:
    return Look((1,), content, None if content is None else NOW, problem)


def publish(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}")
    staged.write_bytes(content)
    staged.replace(path)


# What a file means


@pytest.mark.parametrize(
    ("content", "state", "reason"),
    [
        pytest.param(file(), FileState.IN_USE, "", id="whole"),
        pytest.param(
            file(Topology(gpus=TOPOLOGY.gpus)), FileState.IN_USE, "", id="whole, no links"
        ),
        pytest.param(file(expiry=None), FileState.IN_USE, "", id="for ever"),
        pytest.param(as_the_reference_writes(), FileState.IN_USE, "labels only", id="reference"),
        pytest.param(f"{NS}/xe-links=\n".encode(), FileState.IN_USE, "labels only", id="empty"),
        pytest.param(
            file(None), FileState.NO_FABRIC_DATA, "no data of Xe Links", id="no fabric data"
        ),
        pytest.param(b"", FileState.MISSING, "no label", id="an empty file"),
        pytest.param(b"vendor/other=1\n", FileState.MISSING, "no label", id="another's file"),
        pytest.param(file() * 1000, FileState.MISSING, "drops the whole file", id="too long"),
        pytest.param(
            file(expiry=NOW - timedelta(1)), FileState.EXPIRED, "2026-05-03", id="expired"
        ),
        pytest.param(
            file().replace(b"_0.1-1.1", b""),
            FileState.INCONSISTENT,
            "other links",
            id="a link less",
        ),
        pytest.param(
            file()[: file().index(b"# +no-label")].replace(b"0.1-", b"1.0-"),
            FileState.INCONSISTENT,
            "xe-links.hash",
            id="another hash",
        ),
        pytest.param(
            f"{NS}/xe-links=0.0-1\n".encode(),
            FileState.INCONSISTENT,
            "not a link",
            id="half a link",
        ),
        pytest.param(
            f"{NS}/xe-links2=Z0.0-1.0\n".encode(), FileState.INCONSISTENT, "missing", id="no first"
        ),
        pytest.param(
            b"# +\xff\x00\nx\xfe", FileState.MISSING, r"bad directive: # +\xff\x00", id="bytes"
        ),
    ],
)
def test_a_file_counts_whole_or_not_at_all(content: bytes, state: FileState, reason: str) -> None:
    reading = read(seen(content), NS, NOW)
    assert reading.state is state
    assert reason in reading.reason
    assert reading.reason.isprintable()
    assert (reading.publication is not None) == (
        state in {FileState.IN_USE, FileState.NO_FABRIC_DATA}
    )
    assert reading.published == NOW


def test_no_file_is_missing_with_the_reason() -> None:
    reading = read(seen(None, "No such file or directory"), NS, NOW)
    assert reading == Reading(FileState.MISSING, "No such file or directory")


def test_another_namespace_is_another_sidecars(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(file())
    assert read(look(path), "example.com", NOW).state is FileState.MISSING


def test_an_expired_file_tells_when_it_expired() -> None:
    assert read(seen(file()), NS, EXPIRY + timedelta(seconds=1)).expiry == EXPIRY


def test_a_reason_is_one_short_line_whatever_the_file_quotes() -> None:
    reading = read(seen(b"# +" + b"\xe2\x80\xa8\x1b[31m\t" * 5000), NS, NOW)
    assert reading.state is FileState.MISSING
    assert len(reading.reason) < 400
    assert reading.reason.isprintable()


@given(topology=strategies.topologies)
def test_what_was_rendered_is_read(topology: Topology) -> None:
    reading = read(seen(file(topology)), NS, NOW)
    assert reading.state is FileState.IN_USE
    assert reading.publication == Publication(topology, EXPIRY)


@given(
    topology=strategies.topologies,
    cut=st.integers(0, FILE_LIMIT),
    put=st.binary(max_size=20),
    removed=st.integers(0, 40),
)
def test_no_content_is_too_broken_to_be_read(
    topology: Topology, cut: int, put: bytes, removed: int
) -> None:
    content = file(topology)
    cut %= len(content) + 1
    broken = content[:cut] + put + content[cut + removed :]
    reading = read(seen(broken), NS, NOW)
    if reading.publication and reading.publication.whole and reading.publication.topology:
        assert {link.ends for link in reading.publication.topology.links} == set(topology.by_ends)


@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_reading(content: bytes) -> None:
    assert read(seen(content), NS, NOW).reason.isprintable()


@pytest.mark.parametrize(
    ("reading", "later", "outlived"),
    [
        pytest.param(Reading(FileState.IN_USE), timedelta(days=9999), False, id="for ever"),
        pytest.param(
            Reading(FileState.IN_USE, expiry=EXPIRY), timedelta(0), False, id="the instant"
        ),
        pytest.param(
            Reading(FileState.IN_USE, expiry=EXPIRY), timedelta(seconds=1), True, id="past"
        ),
        pytest.param(Reading(FileState.EXPIRED, expiry=EXPIRY), timedelta(1), False, id="known"),
        pytest.param(
            Reading(FileState.EXPIRED, expiry=EXPIRY), -timedelta(1), True, id="clock back"
        ),
        pytest.param(Reading(FileState.MISSING), timedelta(1), False, id="no file"),
    ],
)
def test_only_an_expiry_outlives_a_reading(
    reading: Reading,
    later: timedelta,
    outlived: bool,  # noqa: FBT001  # a row of a table
) -> None:
    assert reading.outlived(EXPIRY + later) is outlived


@pytest.mark.parametrize(
    ("content", "age", "settled"),
    [
        pytest.param(file(), timedelta(0), True, id="whole"),
        pytest.param(as_the_reference_writes(), timedelta(0), False, id="labels only, new"),
        pytest.param(as_the_reference_writes(), SETTLED, True, id="labels only, older"),
        pytest.param(as_the_reference_writes(), -SETTLED, True, id="labels only, future"),
        pytest.param(b"", timedelta(0), False, id="just begun"),
        pytest.param(None, timedelta(0), True, id="no file"),
    ],
)
def test_what_may_be_half_written_must_stand_for_a_moment(
    content: bytes | None,
    age: timedelta,
    settled: bool,  # noqa: FBT001  # a row of a table
) -> None:
    assert read(seen(content), NS, NOW).settled(NOW + age) is settled


# A look at the file


def test_a_look_without_a_change_is_the_same_object(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    nothing = look(path)
    assert nothing.problem == "No such file or directory"
    assert look(path, nothing) is nothing
    publish(path, b"a")
    first = look(path, nothing)
    assert first.content == b"a"
    assert look(path, first) is first
    os.utime(path, (1, 1))
    assert look(path, first) is not first


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: publish(path, b"b"), id="another of the same length"),
        pytest.param(lambda path: path.write_bytes(b"longer"), id="in place"),
        pytest.param(lambda path: path.unlink(), id="removed"),
    ],
)
def test_every_change_is_another_look(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "labels"
    publish(path, b"a")
    before = look(path)
    change(path)
    assert look(path, before) != before


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.mkdir(), id="directory"),
        pytest.param(os.mkfifo, id="pipe"),
        pytest.param(lambda path: path.symlink_to("/dev/null"), id="device"),
        pytest.param(lambda path: path.symlink_to(path), id="loop"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="dangling"),
    ],
)
def test_what_is_no_regular_file_is_missing_and_never_waited_for(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "labels"
    make(path)
    descriptors = set(Path("/proc/self/fd").iterdir())
    found = look(path)
    assert found.content is None
    assert found.problem
    assert look(path, found) is found
    assert set(Path("/proc/self/fd").iterdir()) == descriptors


def test_no_more_is_read_than_nfd_takes(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(b"#" * (FILE_LIMIT * 3))
    assert len(look(path).content or b"") == FILE_LIMIT + 1


@given(mtime=st.integers(-(2**40), 2**40))
def test_no_file_time_is_too_strange(mtime: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "labels")
        path.write_bytes(file())
        try:
            os.utime(path, (mtime, mtime))
        except OSError:  # this file system does not keep such a time
            return
        assert read(look(path), NS, NOW).state is FileState.IN_USE


# Following it


class Follower:
    """`follow` in a task, with a clock of our own; `next` waits for what it tells."""

    def __init__(self, path: Path, now: datetime = NOW) -> None:
        self.path = path
        self.now = now
        self._stop = asyncio.Event()
        self._looked = asyncio.Event()
        self._told: asyncio.Queue[Reading] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(
            follow(self.path, NS, self._told.put_nowait, self._stop, now=self._time, every=0.002)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        async with asyncio.timeout(PATIENCE):
            await self._task
        assert self._told.empty()

    async def next(self) -> Reading:
        async with asyncio.timeout(PATIENCE):
            return await self._told.get()

    async def nothing_new(self, looks: int = 3) -> None:
        """Wait for a few more looks, in which nothing is told."""
        async with asyncio.timeout(PATIENCE):
            for _ in range(looks):
                self._looked.clear()
                await self._looked.wait()
        assert self._told.empty()

    def _time(self) -> datetime:
        self._loop.call_soon_threadsafe(self._looked.set)  # looks are made in another thread, too
        return self.now


def test_each_change_is_told_once(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "labels"
        async with Follower(path) as follower:
            assert (await follower.next()).state is FileState.MISSING
            await follower.nothing_new()
            publish(path, file())
            told = await follower.next()
            assert told.state is FileState.IN_USE
            assert told.publication == Publication(TOPOLOGY, EXPIRY)
            await follower.nothing_new()
            publish(path, file(OTHER))
            assert (await follower.next()).publication == Publication(OTHER, EXPIRY)
            path.unlink()
            assert (await follower.next()).state is FileState.MISSING

    asyncio.run(story())


def test_an_expiry_passes_without_any_change_of_the_file(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "labels"
        publish(path, file())
        async with Follower(path) as follower:
            assert (await follower.next()).state is FileState.IN_USE
            follower.now = EXPIRY
            await follower.nothing_new()
            follower.now = EXPIRY + timedelta(seconds=1)
            told = await follower.next()
            assert (told.state, told.publication, told.expiry) == (FileState.EXPIRED, None, EXPIRY)
            await follower.nothing_new()
            publish(path, file(expiry=EXPIRY + timedelta(minutes=5)))
            assert (await follower.next()).state is FileState.IN_USE

    asyncio.run(story())


def test_a_clock_that_steps_back_makes_labels_valid_again(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "labels"
        publish(path, file())
        async with Follower(path, EXPIRY + timedelta(1)) as follower:
            assert (await follower.next()).state is FileState.EXPIRED
            follower.now = NOW
            assert (await follower.next()).state is FileState.IN_USE

    asyncio.run(story())


def test_a_renewal_is_told_with_its_expiry(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "labels"
        publish(path, file())
        async with Follower(path) as follower:
            await follower.next()
            later = EXPIRY + timedelta(minutes=5)
            publish(path, file(expiry=later))
            assert (await follower.next()).expiry == later

    asyncio.run(story())


def test_half_of_a_file_is_never_told(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "labels"
        whole = as_the_reference_writes()

        def written(content: bytes) -> None:
            """Let the file be as one that is written in place, at this instant of our clock."""
            staged = tmp_path / "staged"
            staged.write_bytes(content)
            os.utime(staged, (NOW.timestamp(),) * 2)
            staged.rename(path)

        publish(path, file(OTHER))
        async with Follower(path) as follower:
            before = await follower.next()
            written(whole.replace(b"_0.1-1.1", b""))  # looks valid and is wrong
            assert read(look(path), NS, NOW).state is FileState.IN_USE
            await follower.nothing_new()
            written(whole)
            await follower.nothing_new()
            follower.now += timedelta(seconds=10)
            told = await follower.next()
            assert told.publication == replace(
                Publication(Topology(tuple(map(without_lanes, TOPOLOGY.links)))), whole=False
            )
            assert before.publication == Publication(OTHER, EXPIRY)

    asyncio.run(story())


def without_lanes(link: Link) -> Link:
    return Link(link.a, link.b)


class Mount:
    """A file system that answers until it dies."""

    def __init__(self) -> None:
        self.alive = threading.Event()
        self.alive.set()
        self.asked = threading.Event()

    def look(self, path: Path, before: Look | None = None) -> Look:
        if not self.alive.is_set():
            self.asked.set()
            assert self.alive.wait(20)
        return look(path, before)


def test_a_file_system_that_does_not_answer_holds_nobody(tmp_path: Path) -> None:
    """Neither a loop that goes on, nor labels that have not expired."""
    path = tmp_path / "labels"
    publish(path, file())

    async def story() -> None:
        mount, stop, instant = Mount(), asyncio.Event(), [NOW]
        told: asyncio.Queue[Reading] = asyncio.Queue()
        mount.alive.clear()
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(
                follow(
                    path,
                    NS,
                    told.put_nowait,
                    stop,
                    now=lambda: instant[0],
                    every=0.002,
                    looking=mount.look,
                    time_limit=0.05,
                )
            )
            reading = await told.get()
            assert reading.state is FileState.MISSING
            assert reading.reason == "not read within 0.05 s: its file system does not answer"
            mount.alive.set()
            assert (await told.get()).state is FileState.IN_USE
            stop.set()

    asyncio.run(story())


def test_labels_expire_though_their_file_system_does_not_answer(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    publish(path, file())
    alive, instant = threading.Event(), [NOW]

    def dead_from_the_expiry_on(path: Path, before: Look | None = None) -> Look:
        # Who waits for news is told that there are none: it is the look that follows that hangs.
        if instant[0] > EXPIRY and threading.current_thread().name != "lookout":
            assert alive.wait(PATIENCE)
        return look(path, before)

    async def story() -> None:
        stop = asyncio.Event()
        told: asyncio.Queue[Reading] = asyncio.Queue()
        try:
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
                tasks.create_task(
                    follow(
                        path,
                        NS,
                        told.put_nowait,
                        stop,
                        now=lambda: instant[0],
                        every=0.002,
                        looking=dead_from_the_expiry_on,
                        time_limit=0.05,
                    )
                )
                assert (await told.get()).state is FileState.IN_USE
                instant[0] = EXPIRY + timedelta(seconds=1)
                reading = await told.get()
                assert reading.state is FileState.MISSING
                assert reading.reason.startswith("not read within 0.05 s")
                stop.set()
        finally:
            alive.set()

    asyncio.run(story())


def test_a_stop_ends_it_while_a_file_system_does_not_answer(tmp_path: Path) -> None:
    async def story() -> None:
        mount, stop = Mount(), asyncio.Event()
        mount.alive.clear()
        try:
            async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                tasks.create_task(
                    follow(
                        tmp_path / "labels", NS, print, stop, looking=mount.look, time_limit=3600
                    )
                )
                await asyncio.to_thread(mount.asked.wait, 10)
                stop.set()
        finally:
            mount.alive.set()

    asyncio.run(story())


def test_a_stop_ends_it_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        stop = asyncio.Event()
        told: asyncio.Queue[Reading] = asyncio.Queue()
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            tasks.create_task(follow(tmp_path / "labels", NS, told.put_nowait, stop, every=3600))
            await told.get()
            stop.set()

    asyncio.run(story())


def test_what_the_callback_raises_ends_it(tmp_path: Path) -> None:
    def fail(_: Reading) -> None:
        raise LookupError

    async def story() -> None:
        await follow(tmp_path / "labels", NS, fail, asyncio.Event())

    with pytest.raises(LookupError):
        asyncio.run(story())
