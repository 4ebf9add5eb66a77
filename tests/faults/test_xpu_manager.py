"""XPU Manager misbehaves: what is published stands, with a reason, and the next scrape heals.

One table, which `make soak` takes its mischief from, too. Each row is held against a sidecar that
runs as a process: class and reason in log and metrics, the feature file byte for byte while it goes
on, the time and the memory that it took, and that the next good scrape is published.
"""

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.rig import TIMEOUT, Sidecar, sidecar, truth
from tests.patience import NEVER, PATIENCE
from xelink.simulators.xpu_manager import MISBEHAVIOURS, Blueprint, Serving, Simulator
from xelink.simulators.xpu_manager.exchange import Exchange
from xelink.simulators.xpu_manager.exposition import render
from xelink.simulators.xpu_manager.faults import Misbehaviour, Option, spelt
from xelink.simulators.xpu_manager.node import SimulatedNode

LINKS = "links"
TIMES_OUT = "timeout"
LANES = 12  # rows are tried by so many sidecars at a time, as most of the time is spent waiting
LATE_LANES = 2  # of them, for rows that time out


def topology_fails(exchange: Exchange) -> None:
    """Every family but the topology: its call failed."""
    _tell(exchange, replace(exchange.node, topology_fails=True))


def too_many_tiles(exchange: Exchange) -> None:
    """Every family but the topology: the node has more than 32 tiles."""
    _tell(exchange, Blueprint(gpus=17, tiles=2).build())


def second_generation(exchange: Exchange) -> None:
    """XPU Manager 2.x has taken the place of 1.x."""
    _tell(exchange, replace(exchange.node, generation=2))


def thinner(exchange: Exchange) -> None:
    """One GPU's own rows are lost, as when GETs overlap."""
    _tell(exchange, exchange.node.hide(0))


def _tell(exchange: Exchange, node: SimulatedNode) -> None:
    exchange.answer(render(node, exchange.scrape))


class Row(NamedTuple):
    """One misbehaviour and its options, the reason that it must give, a word of the detail.

    What is `once` thinner than the truth is not believed; twice in a row it would be, rightly.
    """

    what: str | Misbehaviour
    reason: str
    detail: str = ""
    options: dict[str, Option] | None = None
    once: bool = False

    @property
    def name(self) -> str:
        return self.what if isinstance(self.what, str) else spelt(self.what)

    def befall(self, xpum: Simulator) -> None:
        """Let XPU Manager misbehave so until it is healed, or once."""
        xpum.misbehave(self.what, times=1 if self.once else None, **(self.options or {}))  # type: ignore[arg-type]  # no option is a number of seconds


FORGED = r"\ngpu.intel.com/xe-links=9.0-9.1"
ELSEWHERE = "http://192.0.2.1/metrics"

TABLE = (
    Row("bad-chunk", "protocol"),
    Row("bad-row", LINKS),
    Row("bad-utf8", LINKS),
    Row("chunked", LINKS),
    Row("close", "reset", "restarts"),
    Row("comments-only", "no-topology-rows"),
    Row("cut", "protocol"),
    Row("cut", LINKS, options={"announced": "cut", "share": 0.9}, once=True),
    Row("cut", LINKS, options={"announced": "none", "share": 0.9}, once=True),
    Row("cut", "no-self-rows", options={"announced": "cut", "share": 0.0}),
    Row("daemon-down", "http-status", "500 #nodata"),
    Row("delay", "timeout", options={"by": NEVER}),
    Row("delay", LINKS, options={"by": 0.3}),
    Row("drip-body", "timeout", options={"rate": 1.0}),
    Row("drip-headers", "timeout", options={"rate": 1.0}),
    Row("empty", "not-xpu-manager"),
    Row("endless", "too-large"),
    Row("endless-continue", "timeout"),
    Row("endless-headers", "protocol"),
    Row("garbage", "not-xpu-manager", options={"size": 5_000_000}),
    Row("hang", "timeout"),
    Row("hang-in-body", "timeout"),
    Row("html", "not-xpu-manager"),
    Row("huge", "too-large", "-max-body"),
    Row("huge", "too-large", "-max-body", options={"announced": False}),
    Row("injected", LINKS, options={"label": "uuid", "text": FORGED}),
    Row("injected", LINKS, options={"label": "dev_file", "text": FORGED}),
    Row("injected", LINKS, options={"label": "vendor", "text": FORGED}),
    Row("injected", LINKS, options={"label": "pci_bdf", "text": FORGED}, once=True),
    Row("injected", LINKS, options={"label": "vendor", "text": '=,}{ \\" 1.0'}),
    Row(
        "injected", "no-self-rows", options={"label": "vendor", "text": FORGED.replace("\\n", "\n")}
    ),
    Row("injected", "no-self-rows", options={"label": "local_device_id", "text": FORGED}),
    Row("injected", "no-self-rows", options={"label": "remote_device_id", "text": "_9.0-9.1"}),
    Row("injected", "no-self-rows", options={"label": "lane_count", "text": "9" * 1000}),
    Row("long-line", LINKS),
    Row("long-numbers", "no-self-rows"),
    Row("many-rows", "too-large"),
    Row("no-content", "http-status", "204"),
    Row("no-devices", "http-status", "500 #nodata"),
    Row("not-http", "protocol", "no HTTP"),
    Row("nul", LINKS),
    Row("race", LINKS),
    Row("redirect", "http-status", "302"),
    Row("redirect", "http-status", "301", options={"code": 301, "location": ELSEWHERE}),
    Row("redirect", "http-status", "308", options={"code": 308, "location": "http://[::1"}),
    Row("refuse", "refused", "not up"),
    Row("reset", "reset"),
    Row("reset-in-body", "reset"),
    Row(second_generation, "no-fabric-data", "2.x"),
    Row("status", "http-status", "503"),
    Row("status", "http-status", "206", options={"code": 206}),
    Row("status", "http-status", "404", options={"code": 404}),
    Row("text-html", LINKS),
    Row(thinner, LINKS, once=True),
    Row(too_many_tiles, "no-topology-rows", "32 tiles"),
    Row(topology_fails, "no-topology-rows", "topology call failed"),
    Row("unauthorized", "unauthorized", "-password-file"),
    Row("unauthorized", "timeout", options={"sleep": NEVER}),
    Row("utf16", "not-xpu-manager"),
    Row("wrong-length", "protocol"),
    Row("wrong-length", LINKS, options={"by": -100}),
    Row("zipped", "protocol", "gzip"),
)


def test_the_table_has_every_misbehaviour() -> None:
    named = {row.what for row in TABLE if isinstance(row.what, str)}
    assert named == {*MISBEHAVIOURS, "refuse"}


def hold(row: Row, daemon: Sidecar, xpum: Simulator) -> None:
    """Hold one row against a sidecar that has published the truth."""
    before, asked, counted = daemon.content(), xpum.requests, daemon.scrapes()
    row.befall(xpum)
    if row.reason == LINKS:
        # The first may have been under way, and the last still is.
        xpum.wait_for_request(asked + (3 if row.once else 5))
        assert {*daemon.scrapes() - counted} == {LINKS}
    else:
        daemon.refuses(row.reason, row.detail)
        daemon.wait_for_scrapes(lambda more: more[row.reason] >= 1)  # and what a second one changes
        assert {*daemon.scrapes() - counted} - {LINKS} == {row.reason}
    assert daemon.content() == before
    xpum.recover()
    if row.reason != "unauthorized":  # then it is not asked again for a minute; see below
        daemon.heals(xpum)
    daemon.is_bounded()


def lane(rows: Sequence[Row], folder: Path) -> dict[str, str]:
    """Hold rows one after the other; give what went wrong, by row.

    Where none is to time out, none may: an answer may take as long as a busy machine makes it.
    """
    folder.mkdir()
    wrong: dict[str, str] = {}
    timeout = TIMEOUT if rows[0].reason == TIMES_OUT else PATIENCE
    with Simulator(truth(4)) as xpum, sidecar(xpum.port, folder, timeout=timeout) as daemon:
        for row in rows:
            try:
                hold(row, daemon, xpum)
            except Exception as error:  # noqa: BLE001 - told with the others, by its row
                wrong[str(row)] = f"{type(error).__name__}: {error}; {daemon.process.lines[-3:]}"
                xpum.recover()
    return wrong


@pytest.mark.parametrize("half", [0, 1])
def test_every_misbehaviour_is_told_bounded_and_healed_and_changes_nothing(
    tmp_path: Path, half: int
) -> None:
    # The one after which the sidecar is not to ask again comes last.
    rows = sorted(TABLE, key=lambda row: row.reason == "unauthorized")[half::2]
    late = [row for row in rows if row.reason == TIMES_OUT]
    others = [row for row in rows if row.reason != TIMES_OUT]
    few, some = LATE_LANES, LANES - LATE_LANES
    groups = [
        *(late[number::few] for number in range(few)),
        *(others[number::some] for number in range(some)),
    ]
    with ThreadPoolExecutor(LANES) as pool:
        lanes = [
            pool.submit(lane, group, tmp_path / str(number)) for number, group in enumerate(groups)
        ]
        assert {row: text for done in lanes for row, text in done.result().items()} == {}


def test_a_refused_password_stands_is_not_hammered_and_a_right_one_heals(tmp_path: Path) -> None:
    file, old, new = tmp_path / "password", "before", "after"
    file.write_text(old)
    login = ("-username=xpumadmin", f"-password-file={file}")
    with (
        Simulator(truth(4), Serving(password=old)) as first,
        sidecar(first.port, tmp_path, *login) as daemon,
    ):
        before = daemon.content()
        first.close()
        with Simulator(truth(4), Serving(port=first.port, password=new)) as xpum:
            while "reason=unauthorized " not in daemon.process.wait_for("no usable answer"):
                pass  # refused, until it listens
            asked = xpum.requests
            daemon.wait_for_scrapes(lambda more: more["unauthorized"] >= 3)
            assert xpum.requests == asked == 1
            assert daemon.content() == before
            file.write_text(new)
            daemon.heals(xpum)
            daemon.is_bounded()


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with (
        Simulator(truth(8)) as other,
        Simulator(truth(4)) as xpum,
        sidecar(xpum.port, tmp_path) as daemon,
    ):
        xpum.misbehave("redirect", code=301, location=other.url)
        daemon.refuses("http-status", "301")
        daemon.is_true()
        assert other.connections == 0


def test_an_xpu_manager_on_ipv6_loopback_alone_is_refused_and_on_both_is_scraped(
    tmp_path: Path,
) -> None:
    try:
        both = Simulator(truth(4), Serving(bind="::")).start()
    except OSError as lacking:
        pytest.skip(f"no IPv6 here: {lacking}")
    with both, sidecar(both.port, tmp_path, "-listen=[::1]:0") as daemon:
        assert daemon.url.startswith("http://[::1]:")
        both.close()
        with Simulator(truth(4), Serving(bind="::1", port=both.port)):
            daemon.refuses("refused", "nothing listens there")
            daemon.is_true()
        with Simulator(truth(4), Serving(bind="::", port=both.port)) as healed:
            daemon.expects(healed)


BLIND = """
mount --bind /dev/null /etc/hosts && mount --bind "$0" /etc/resolv.conf && exec "$@"
"""


def test_a_host_without_names_is_no_hindrance(tmp_path: Path) -> None:
    """No /etc/hosts, and a name server that never answers: nothing here asks for a name."""
    deaf = tmp_path / "resolv.conf"
    deaf.write_text("nameserver 192.0.2.1\noptions timeout:30 attempts:10\n")
    before = ("unshare", "--mount", "sh", "-c", BLIND, str(deaf))
    if not shutil.which("unshare") or subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("needs root, for a mount namespace")
    with (
        Simulator(truth(4)) as xpum,
        sidecar(xpum.port, tmp_path, before=before) as daemon,
    ):
        daemon.expects(xpum)
