import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path
from typing import TypeVarTuple, Unpack

import grpc
import pytest

from tests.patience import NEVER, PATIENCE
from xelink.inventory.health import Health, Severity
from xelink.inventory.xpumd import Rule, XpumdTimings, target, watch
from xelink.simulators.xpumd import Xpumd

FIRST = "0000:29:00.0"
SECOND = "0000:3A:00.0"  # as XPU Manager may spell it
SECOND_BDF = SECOND.lower()
QUICK = XpumdTimings(silence=NEVER, first_pause=0.005, longest_pause=0.02, tick=0.002)
Ts = TypeVarTuple("Ts")


class Watcher:
    """`watch` in a task; `until` waits for a health that a condition holds of."""

    def __init__(self) -> None:
        self.health = Health()
        self.told = 0
        self.clock = 0.0
        self._news = asyncio.Event()

    def tell(self, health: Health) -> None:
        self.health = health
        self.told += 1
        self._news.set()

    async def until(self, condition: Callable[[Health], object]) -> Health:
        async with asyncio.timeout(PATIENCE):
            while not condition(self.health):
                self._news.clear()
                await self._news.wait()
        return self.health


@asynccontextmanager
async def watching(
    endpoint: Path | str, rule: Rule | None = None, timings: XpumdTimings = QUICK
) -> AsyncIterator[Watcher]:
    watcher, stop = Watcher(), asyncio.Event()
    async with asyncio.timeout(PATIENCE):
        task = asyncio.create_task(
            watch(
                str(endpoint),
                rule or Rule(),
                watcher.tell,
                stop,
                now=lambda: watcher.clock,
                timings=timings,
            )
        )
        try:
            yield watcher
        finally:
            stop.set()
            await task


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "xpu.sock"


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await story()

    asyncio.run(whole())


def after(messages: int) -> Callable[[Health], bool]:
    return lambda health: health.messages >= messages


def test_a_gpu_is_unhealthy_after_two_messages_and_healthy_after_two_more(socket: Path) -> None:
    async def story() -> None:
        async with Xpumd(socket, [FIRST, SECOND], every=None) as xpumd, watching(socket) as watcher:
            health = await watcher.until(after(1))
            assert health.error == ""
            assert {bdf: gpu.known for bdf, gpu in health.gpus.items()} == {
                FIRST: True,
                SECOND_BDF: True,
            }
            xpumd.report(SECOND, "memory", Severity.CRITICAL, "ECC", "uncorrectable errors")
            xpumd.push()
            assert not (await watcher.until(after(2))).unhealthy
            xpumd.push()
            assert (await watcher.until(after(3))).unhealthy == {
                SECOND_BDF: "memory is critical (ECC, uncorrectable errors)"
            }
            xpumd.recover(SECOND)
            xpumd.push()
            assert (await watcher.until(after(4))).unhealthy
            xpumd.push()
            assert not (await watcher.until(after(5))).unhealthy

    run(story)


def test_the_rule_is_the_users(socket: Path) -> None:
    async def story() -> None:
        rule = Rule(Severity.WARNING, confirmations=1)
        async with (
            Xpumd(socket, [FIRST], every=None) as xpumd,
            watching(socket, rule) as watcher,
        ):
            await watcher.until(after(1))
            xpumd.report(FIRST, "power", Severity.WARNING)
            xpumd.push()
            await watcher.until(lambda health: health.unhealthy == {FIRST: "power is warning"})

    run(story)


def test_messages_come_by_themselves(socket: Path) -> None:
    async def story() -> None:
        async with Xpumd(socket, [FIRST], every=0.001), watching(socket) as watcher:
            await watcher.until(after(5))

    run(story)


def test_it_waits_for_an_xpumd_that_comes_later(socket: Path) -> None:
    async def story() -> None:
        async with watching(socket) as watcher:
            health = await watcher.until(lambda health: "UNAVAILABLE" in health.error)
            assert "\n" not in health.error
            assert not health.gpus
            async with Xpumd(socket, [FIRST]):
                await watcher.until(lambda health: health.gpus and not health.error)

    run(story)


def test_it_comes_back_after_every_restart_and_forgets_no_verdict(socket: Path) -> None:
    async def story() -> None:
        xpumd = Xpumd(socket, [FIRST], every=None)
        xpumd.report(FIRST, "memory", Severity.FAILED)
        async with watching(socket, Rule(confirmations=3)) as watcher:
            for restart in range(1, 4):
                async with xpumd:
                    health = await watcher.until(after(restart))
                    assert bool(health.unhealthy) is (restart == 3)
                await watcher.until(lambda health: health.error)
            assert watcher.health.unhealthy

    run(story)


@pytest.mark.parametrize(
    ("code", "trouble"),
    [
        (grpc.StatusCode.OK, "xpumd ended the stream"),
        (grpc.StatusCode.INTERNAL, "INTERNAL: as simulated"),
        (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE: as simulated"),
        (grpc.StatusCode.CANCELLED, "CANCELLED: as simulated"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED: as simulated"),
    ],
)
def test_a_stream_that_ends_is_told_and_opened_again(
    socket: Path, code: grpc.StatusCode, trouble: str
) -> None:
    async def story() -> None:
        async with Xpumd(socket, [FIRST], every=None) as xpumd, watching(socket) as watcher:
            for messages in (1, 2, 3):
                await watcher.until(after(messages))
                xpumd.hang_up(code)
                await watcher.until(lambda health: health.error == trouble)
            assert xpumd.connections >= 3
            assert not watcher.health.unhealthy

    run(story)


class Hourglass(asyncio.SelectorEventLoop):
    """A loop that knows for how long it was asked to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.pauses.append(delay)
        return super().call_later(delay, callback, *args, context=context)


def test_an_xpumd_that_is_down_is_asked_less_and_less_often_until_there_is_news(
    socket: Path,
) -> None:
    timings = XpumdTimings(silence=NEVER, first_pause=0.001, longest_pause=0.016, tick=NEVER)

    async def story() -> None:
        async with watching(socket, timings=timings) as watcher:
            await watcher.until(lambda _: watcher.told > 30)
            pauses = [pause for pause in loop.pauses if pause <= timings.longest_pause]
            assert all(pause >= timings.first_pause for pause in pauses)
            assert max(pauses[:2]) <= 2 * timings.first_pause, "at first soon"
            assert max(pauses) > 2 * timings.first_pause
            async with Xpumd(socket, [FIRST], every=None) as xpumd:
                await watcher.until(after(1))
                loop.pauses.clear()
                xpumd.hang_up()
                await watcher.until(after(2))
                assert timings.first_pause in loop.pauses, "never at once, news or not"
                loop.pauses.clear()
            await watcher.until(lambda health: health.error)
            await watcher.until(lambda _: loop.pauses)
            assert loop.pauses[0] == timings.first_pause, "from the beginning"

    with contextlib.closing(Hourglass()) as loop:
        loop.run_until_complete(story())


def test_a_server_that_knows_no_health_is_asked_again(socket: Path) -> None:
    async def story() -> None:
        server = grpc.aio.server()
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        async with watching(socket) as watcher:
            await watcher.until(lambda health: "UNIMPLEMENTED" in health.error)
            await server.stop(None)
            async with Xpumd(socket, [FIRST]):
                await watcher.until(after(1))

    run(story)


def test_silence_is_unknown_and_no_verdict(socket: Path) -> None:
    async def story() -> None:
        async with Xpumd(socket, [FIRST, SECOND], every=None) as xpumd:
            xpumd.report(FIRST, "memory", Severity.FAILED)
            async with watching(socket, Rule(confirmations=1)) as watcher:
                before = await watcher.until(after(1))
                watcher.clock = NEVER + 0.5
                silent = await watcher.until(lambda health: health.error)
                assert silent.error == "no news for 3600 s"
                assert silent.unhealthy == before.unhealthy
                assert not any(gpu.known for gpu in silent.gpus.values())
                xpumd.push()
                again = await watcher.until(after(2))
                assert again == before

    run(story)


HASTY = XpumdTimings(silence=0.1, first_pause=0.005, longest_pause=0.02, tick=60.0)


def test_a_stream_that_hangs_is_opened_again(socket: Path) -> None:
    async def story() -> None:
        async with (
            Xpumd(socket, [FIRST], every=None) as xpumd,
            watching(socket, timings=HASTY) as watcher,
        ):
            await watcher.until(after(1))
            await watcher.until(lambda health: health.error == "no news for 0.1 s")
            await watcher.until(after(3))
            assert xpumd.connections >= 3

    run(story)


def test_a_server_that_never_says_anything_is_asked_again(socket: Path) -> None:
    async def story() -> None:
        async with Xpumd(socket, [FIRST]) as xpumd:
            xpumd.silent = True
            async with watching(socket, timings=HASTY) as watcher:
                await watcher.until(lambda health: health.error == "no news for 0.1 s")
                assert not watcher.health.messages
                xpumd.silent = False
                await watcher.until(after(1))
                assert xpumd.connections >= 2

    run(story)


def test_what_is_no_message_is_counted_and_survived(
    socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with Xpumd(socket, [FIRST], every=None) as xpumd, watching(socket) as watcher:
            await watcher.until(after(1))
            xpumd.send(b"\xff\xff\xff")
            xpumd.send(b"\x0a\x06\x0a\x04\x0a\x02\xff\xfe")
            xpumd.send(b"\x0a\x00" * 10_000)  # more GPUs than there are
            xpumd.send(b"\x0a\x04\x12\x00\x12\x00" * 5_000)  # more checks
            xpumd.add("rubbish")
            xpumd.report(FIRST, "memory", 99)
            xpumd.push()
            health = await watcher.until(after(2))
            assert health.bad_messages == 4
            assert (health.bad_addresses, health.bad_severities) == (1, 1)
            assert xpumd.connections == 1
            assert not [record for record in caplog.records if record.name.startswith("grpc")]
            xpumd.remove("rubbish")
            xpumd.send(bytes(5 << 20))  # more than a message may have
            await watcher.until(lambda health: "RESOURCE_EXHAUSTED" in health.error)
            await watcher.until(after(3))

    run(story)


@pytest.mark.parametrize(
    "endpoint",
    [
        pytest.param("/" + "x" * 200, id="longer than a socket's path"),
        pytest.param("nowhere.invalid:foo", id="no name"),
        pytest.param("unix:/proc/self/status", id="no socket"),
    ],
)
def test_an_endpoint_that_cannot_be_is_a_trouble_and_no_exception(endpoint: str) -> None:
    async def story() -> None:
        async with watching(endpoint) as watcher:
            health = await watcher.until(lambda health: health.error != Health().error)
            assert health.error.isprintable()

    run(story)


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        ("/run/xpumd/intelxpuinfo.sock", "unix:/run/xpumd/intelxpuinfo.sock"),
        ("unix:///run/xpumd.sock", "unix:///run/xpumd.sock"),
        ("127.0.0.1:50051", "127.0.0.1:50051"),
    ],
)
def test_a_path_is_a_unix_socket(endpoint: str, name: str) -> None:
    assert target(endpoint) == name


def test_a_stop_ends_it_while_it_waits(socket: Path) -> None:
    async def story() -> None:
        for slow in (XpumdTimings(), XpumdTimings(first_pause=3600, longest_pause=3600)):
            async with watching(socket, timings=slow) as watcher:
                await watcher.until(lambda health: "UNAVAILABLE" in health.error)
        async with Xpumd(socket, [FIRST]), watching(socket) as watcher:
            await watcher.until(after(1))

    run(story)


def test_what_the_callback_raises_ends_it(socket: Path) -> None:
    def fail(_: Health) -> None:
        raise LookupError

    async def story() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await asyncio.wait_for(watch(str(socket), Rule(), fail, asyncio.Event()), PATIENCE)
        assert caught.group_contains(LookupError)

    run(story)


def test_a_rule_needs_a_message() -> None:
    with pytest.raises(ValueError, match="0 messages"):
        Rule(confirmations=0)


def test_a_simulator_refuses_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long"):
        Xpumd(tmp_path / ("x" * 108))


def test_who_waits_for_a_watcher_waits_for_one_that_is_there(socket: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(PATIENCE), Xpumd(socket, [FIRST], every=None) as xpumd:
            async with watching(socket):
                await xpumd.watched()
            while xpumd.watchers:  # noqa: ASYNC110 - it tells nobody when one goes
                await asyncio.sleep(0)
            waiting = asyncio.create_task(xpumd.watched())
            await asyncio.sleep(0)
            assert not waiting.done()
            async with watching(socket):
                await waiting

    run(story)
