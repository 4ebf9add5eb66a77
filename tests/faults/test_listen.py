"""Both daemons, as processes at the overlays' memory limits, against whoever reaches `-listen`."""

import os
import resource
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest
import yaml

from tests.faults.rig import footprint
from tests.patience import PATIENCE
from tests.processes import Running, address, get

OVERLAYS = Path(__file__).parents[2] / "overlays"
MANIFESTS = {
    "sidecar": OVERLAYS / "http/xpumanager.yaml",
    "device_plugin": OVERLAYS / "components/device-plugin/container.yaml",
}
MiB = 1 << 20
FLAT = 16 * MiB
"""Bytes that a daemon may take in addition while it is attacked."""
CROWD = 1000

LINE = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
ATTACKS = {
    "97 headers of 65 kB": LINE + b"".join(b"X%d: %s\r\n" % (n, b"x" * 65_000) for n in range(97)),
    "a line without end": b"GET /" + b"x" * 6_000_000,
    "a head that stops": LINE + b"X: " + b"x" * 15_000,
    "nothing": b"",
    "a page that nobody reads": LINE + b"\r\n",
    "metrics that nobody reads": b"GET /metrics HTTP/1.0\r\n\r\n",
    "a stranger's name": b"GET /status.json HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\xff\n\n" * 1000,
}


def limit(module: str) -> int:
    """Give the memory limit of a daemon's container in bytes."""
    spec = yaml.safe_load(MANIFESTS[module].read_text())["spec"]["template"]["spec"]
    (found,) = (each for each in spec["containers"] if each["image"].startswith("xelink:"))
    memory: str = found["resources"]["limits"]["memory"]
    assert memory.endswith("Mi")
    return int(memory.removesuffix("Mi")) * MiB


@contextmanager
def confined(most: int) -> Iterator[tuple[str, ...]]:
    """Give what starts a program with so much memory; nothing where that is not ours to give.

    The peak is measured in any case. With a limit, the kernel does what it does to a container.
    """
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    version = (first, "memory.limit_in_bytes") if first.is_dir() else (second, "memory.max")
    group = version[0] / f"xelink-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / version[1]).write_text(str(most))
    except OSError:  # not root, or the group above has no controller of memory to give
        with suppress(OSError):
            group.rmdir()
        yield ()
        return
    try:
        yield ("sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh")
    finally:
        with suppress(OSError):  # a process that is just ending is in it still: the next run's
            group.rmdir()


def arguments(module: str, place: Path) -> list[str]:
    for name in ("features.d", "kubelet", "host/sys", "host/dev/dri"):
        (place / name).mkdir(parents=True)
    if module == "sidecar":
        features = place / "features.d"
        return [f"-dst-file-path={features}/labels", f"-tmp-dir-prefix={features}", "-xpum-port=1"]
    return [f"-plugin-dir={place}/kubelet", f"-prefix={place}/host", "-cdi=false"]


@pytest.fixture(params=MANIFESTS)
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Running, str]]:
    module: str = request.param
    with (
        confined(limit(module)) as before,
        Running(module, *arguments(module, tmp_path), "-listen=127.0.0.1:0", before=before) as it,
    ):
        yield it, address(it)


@pytest.fixture
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CROWD + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this process may have {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Attack:
    """Connections that all send the same, as far as it is taken, and read nothing."""

    def __init__(self, url: str, sent: bytes, crowd: ExitStack) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._address = (host, int(port))
        self._sent = sent
        self._crowd = crowd
        self._going_on: list[tuple[socket.socket, memoryview]] = []

    def connect(self) -> None:
        """Make one more; whoever still has a place goes on sending."""
        client = self._crowd.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(self._address)
        client.setblocking(False)  # noqa: FBT003 - it has no name
        self._going_on.append((client, memoryview(self._sent)))
        self.go_on()

    def go_on(self) -> None:
        """Send what is taken now."""
        left = [(client, pushed(client, rest)) for client, rest in self._going_on]
        self._going_on = [(client, rest) for client, rest in left if rest]

    def finish(self) -> None:
        """Send until all is taken, or the last one is thrown out."""
        while self._going_on:
            ready = select.select([], [client for client, _ in self._going_on], [], PATIENCE)[1]
            assert ready, "neither taken nor thrown out"
            self.go_on()


@contextmanager
def memory_is_flat(process: Running) -> Iterator[None]:
    """Hold what a daemon takes in the block against what it took before."""
    pid = process.process.pid
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # forgets the peak, which is that of the start
    before = footprint(pid)
    yield
    assert process.process.poll() is None, "killed"
    after = footprint(pid)
    assert after.peak <= before.memory + FLAT, (before, after)
    assert after.threads <= before.threads + 8, (before, after)
    assert after.descriptors <= before.descriptors + 80, (before, after)


def test_a_few_connections_with_endless_headers_take_no_memory(
    daemon: tuple[Running, str],
) -> None:
    process, url = daemon
    assert get(f"{url}/metrics")[0] == 200
    with ExitStack() as crowd, memory_is_flat(process):
        attack = Attack(url, ATTACKS["97 headers of 65 kB"], crowd)
        for _ in range(8):
            attack.connect()
        attack.finish()
    assert get(f"{url}/healthz")[0] == 200


@pytest.mark.usefixtures("_many_files")
@pytest.mark.parametrize("sent", ATTACKS.values(), ids=ATTACKS)
def test_a_thousand_hostile_connections_take_no_memory_and_no_probe(
    daemon: tuple[Running, str], sent: bytes
) -> None:
    process, url = daemon
    assert get(f"{url}/metrics")[0] == 200
    with ExitStack() as crowd:
        attack = Attack(url, sent, crowd)
        with memory_is_flat(process):
            for number in range(CROWD):
                attack.connect()
                if number % 100 == 0:
                    assert get(f"{url}/healthz")[0] == 200
        assert get(f"{url}/healthz")[0] == 200


def pushed(client: socket.socket, sent: memoryview) -> memoryview:
    """Send as much as is taken at once; give the rest, nothing for who was thrown out."""
    try:
        while sent:
            sent = sent[client.send(sent[: 1 << 16]) :]
    except BlockingIOError:
        return sent
    except OSError:
        return sent[:0]
    return sent


def test_a_lack_of_descriptors_is_one_line_and_over_when_it_is_over(
    daemon: tuple[Running, str],
) -> None:
    process, url = daemon
    pid = process.process.pid
    assert get(f"{url}/healthz")[0] == 200
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    host, port = url.removeprefix("http://").split(":")
    # Fewer than are open, so that nothing new is had; as many as poll() may look at are left.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (6, before[1]))
    with ExitStack() as crowd:
        for _ in range(20):
            crowd.enter_context(socket.create_connection((host, int(port)), PATIENCE))
        line = process.wait_for("connections at -listen are not accepted")
        assert 'reason="Too many open files"' in line
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert get(f"{url}/healthz")[0] == 200
    assert process.stop() == 0
    assert sum("at -listen are not accepted" in line for line in process.lines) == 1
    assert not any("Traceback" in line for line in process.lines), process.lines


@pytest.mark.parametrize("module", MANIFESTS)
def test_a_page_of_another_origin_reads_nothing(module: str, tmp_path: Path) -> None:
    words = [*arguments(module, tmp_path), "-listen=127.0.0.1:0", "-listen-names=more.example"]
    names = {"NODE_NAME": "Node-1", "POD_NAME": "pod-1"}
    with Running(module, *words, env=names) as process:
        url = address(process)
        for path in ("/status.json", "/metrics", "/"):
            for host in ("node-1", "pod-1:80", "more.example", socket.gethostname(), "localhost"):
                assert asked(url, path, host)[0] == 200
            status, text = asked(url, path, "evil.example")
            assert status == 421
            assert "add it with -listen-names" in text
        assert 'listen_refused_total{reason="host"} 3.0' in get(f"{url}/metrics")[1]
        assert process.stop() == 0


def asked(url: str, path: str, host: str) -> tuple[int, str]:
    """Ask under a name; give status and text."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
