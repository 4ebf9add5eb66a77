# ruff: noqa: INP001 - a program, not a package
"""Both daemons for some minutes under a random mix of everything that goes wrong: `make soak`.

A fault after the other hits the sidecar (XPU Manager, the file system, TLS, the clock, kills), and
at the same time the plugin (kubelet, kills), drawn by a seed from the tables in `tests/faults`,
each before any comes again. Meanwhile the feature file is read as NFD reads it, Pods are admitted,
and what the daemons take is measured. The last fifth of the time goes to fuzzing the readers of
what others wrote. Exit code 1 and the name of the invariant at the first violation; logs are kept.

Without root or a C compiler some faults are left out, and that is said.
"""

import argparse
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soak_faults import Fault, faults_of_the_plugin, faults_of_the_sidecar
from soak_node import ENDS_WELL, Node, ViolationError

from tests.faults.rig import MEMORY, NS, Footprint, footprint
from tests.fuzz import NAMES
from xelink.simulators.kubelet.admission import AdmissionError
from xelink.topology import nfd_format
from xelink.topology.publication import UnusableError, read

ROOT = Path(__file__).resolve().parent.parent
I915 = "gpu.intel.com/i915"
BEST = {"card2-0", "card7-0"}
_READ_EVERY = 0.02
_ADMIT_EVERY = 0.2
_MEASURE_EVERY = 1.0
_TELL_EVERY = 15.0
_WARM = 20.0
"""Seconds after its start from when on a daemon may hold hardly more."""
_SHARE_OF_FUZZING = 0.2
_MEGABYTE = 1 << 20
_MORE = {
    "sidecar": Footprint(MEMORY, MEMORY, 8, 4),
    "plugin": Footprint(100 * _MEGABYTE, 160 * _MEGABYTE, 64, 16),
}
"""What a daemon may take more than at the end of its warm-up: a request of kubelet has 4 MB."""


@dataclass
class Account:
    """What was injected and what came of it; seconds include waiting for faults that exclude it."""

    injected: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, tuple[float, str]] = field(default_factory=dict)
    """By subject: how long a fault took at most until all was well again, and which."""
    reads: int = 0
    measured: int = 0
    pods: int = 0
    processes: int = 0
    most: dict[str, Footprint] = field(default_factory=dict)
    violation: ViolationError | None = None


class Soak:
    """A run: its threads, and what they find."""

    def __init__(self, node: Node, seconds: float, chance: random.Random) -> None:
        self._node = node
        self._end = time.monotonic() + seconds
        self._chance = chance
        self._stop = threading.Event()
        self.account = Account()

    def run(self) -> None:
        """Run until the time is over, or an invariant does not hold."""
        sidecar, plugin = faults_of_the_sidecar(self._node), faults_of_the_plugin()
        works: list[Callable[[], None]] = [
            lambda: self._inject(sidecar, 0.5),
            lambda: self._inject(plugin, 3.0),
            lambda: self._repeat(self._read, _READ_EVERY),
            lambda: self._repeat(self._admit, _ADMIT_EVERY),
            lambda: self._repeat(_Measured(self._node, self.account).look, _MEASURE_EVERY),
            lambda: self._repeat(self._tell, _TELL_EVERY),
        ]
        threads = [threading.Thread(target=self._guarded, args=[work]) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except ViolationError as violation:
            self.account.violation = self.account.violation or violation
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the run, and is told
            detail = f"{type(error).__name__}: {error}"
            self.account.violation = self.account.violation or ViolationError(
                "nothing else goes wrong", detail
            )
        if self.account.violation:
            self._stop.set()

    def _repeat(self, act: Callable[[], None], pause: float) -> None:
        while not self._stop.wait(pause) and time.monotonic() < self._end:
            act()

    def _inject(self, faults: Sequence[Fault], pause: float) -> None:
        chance = random.Random(self._chance.random())  # noqa: S311 - a mix, no secret
        deck: list[Fault] = []
        while not self._stop.wait(chance.uniform(0, pause)) and time.monotonic() < self._end:
            # Like a deck of cards: each comes, at random, before any comes again.
            deck = deck or chance.sample(faults, len(faults))
            fault = deck.pop()
            started = time.monotonic()
            try:
                fault.act(self._node)
            except ViolationError:
                raise
            except Exception as error:
                raise ViolationError(
                    "every fault is survived",
                    f"{fault.subject}, {fault.name}: {type(error).__name__}: {error}",
                ) from error
            took = time.monotonic() - started
            self.account.injected[fault.subject] += 1
            self.account.seconds[fault.subject] += round(took)
            slowest = self.account.slowest.get(fault.subject, (0.0, ""))
            self.account.slowest[fault.subject] = max(slowest, (took, fault.name))

    def _read(self) -> None:
        """Read the feature file as NFD does, and hold it against the truth."""
        truth = self._node.truth
        before = truth.spoils
        if truth.spoiled:
            return
        problem: tuple[str, str] | None = None
        try:
            mode = stat.S_IMODE(self._node.place.file.stat().st_mode)
            content = self._node.content()
            now = truth.clock()
            said = read(content, NS, now)
        except (OSError, UnusableError) as error:
            lost = isinstance(error, UnusableError | FileNotFoundError)
            name = "no label is lost inside its expiry" if lost else "the file is readable"
            problem = name, repr(error)
        else:
            nfd = nfd_format.parse(content, now).problems
            if mode != 0o644 or nfd:  # noqa: PLR2004 - as everybody reads it
                problem = "the file is readable", f"mode {mode:o}, {nfd}"
            elif said.topology is None or not truth.allows(said.topology):
                problem = "no label is wrong", f"{said.topology} instead of {truth.now}"
        if truth.spoils != before:
            return
        self.account.reads += 1
        if problem:
            raise ViolationError(*problem)

    def _admit(self) -> None:
        """Admit a Pod of two: it gets the pair with the most lanes, where the links are known."""
        node = self._node
        with node.admitting:
            spoils, spoiled = node.truth.spoils, node.truth.spoiled
            # Before it prefers: what it learns between that and the allocation comes too late.
            known = not spoiled and node.has_links()
            try:
                pod = node.kubelet.run_pod("pod", I915, 2)
            except AdmissionError as error:
                raise ViolationError("no admission fails", str(error)) from error
            node.kubelet.delete_pod("pod")
            known = known and node.truth.spoils == spoils
        self.account.pods += 1
        linked = pod.response.envs.get("XELINK_LINKED")
        if known and linked == "all" and {*pod.ids} != BEST:
            raise ViolationError("the best pair is preferred", f"{pod.ids}")

    def _tell(self) -> None:
        left = max(0.0, self._end - time.monotonic())
        injected = sum(self.account.injected.values())
        _say(
            f"{left:4.0f} s left: {injected} faults, {self.account.reads} reads,"
            f" {self.account.pods} Pods"
        )


class _Measured:
    """What the daemons take, against what they took when they were warm."""

    def __init__(self, node: Node, account: Account) -> None:
        self._node = node
        self._account = account
        self._warm: dict[int, tuple[float, Footprint]] = {}

    def look(self) -> None:
        """Measure both daemons; one that is killed meanwhile has nothing to tell."""
        for name, process in (("sidecar", self._node.sidecar), ("plugin", self._node.plugin)):
            pid = process.process.pid
            try:
                now = footprint(pid)
            except (OSError, KeyError):
                continue
            begin, warm = self._warm.setdefault(pid, (time.monotonic(), now))
            if time.monotonic() - begin < _WARM:
                self._warm[pid] = begin, Footprint(*map(max, warm, now))
                continue
            self._account.measured += 1
            most = self._account.most.get(name, now)
            self._account.most[name] = Footprint(*map(max, most, now))
            over = [
                f"{field} {is_now} after {was}"
                for field, is_now, was, more in zip(
                    Footprint._fields, now, warm, _MORE[name], strict=True
                )
                if is_now > was + more
            ]
            if over:
                raise ViolationError("what a daemon takes is bounded", f"{name}: {over}")


def fuzz(seconds: float, seed: int) -> list[str]:
    """Fuzz each reader for its share of the time; give a line for each.

    Raises `ViolationError`.
    """
    told: list[str] = []
    for name in NAMES:
        share = max(1.0, seconds / len(NAMES))
        command = [sys.executable, "-m", "tests.fuzz", name, str(share), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)  # noqa: S603 - our own program
        if done.returncode:
            raise ViolationError(
                "no input breaks a reader", f"{done.stdout}\n{done.stderr[-3000:]}"
            )
        told.append(done.stdout.strip().splitlines()[0])
    return told


def table(account: Account, fuzzed: Sequence[str]) -> str:
    """Write what was injected and what was lost."""
    lines = [f"{'injected':<14}{'times':>7}{'seconds':>9}  the longest"]
    for subject in sorted(account.injected):
        took, name = account.slowest[subject]
        lines.append(
            f"{subject:<14}{account.injected[subject]:>7}{account.seconds[subject]:>9}"
            f"  {took:.0f} s, {name}"
        )
    lines += ["", f"{'held':<44}{'looks':>8}{'lost':>6}"]
    broken = account.violation.invariant if account.violation else ""
    for invariant, looks in (
        ("no label is wrong", account.reads),
        ("no label is lost inside its expiry", account.reads),
        ("the file is readable", account.reads),
        ("no admission fails", account.pods),
        ("the best pair is preferred", account.pods),
        ("every fault is survived", sum(account.injected.values())),
        ("the next good scrape recovers", sum(account.injected.values())),
        ("the plugin comes back", account.injected["kubelet"]),
        ("what a daemon takes is bounded", account.measured),
        (ENDS_WELL, account.processes),
        ("no input breaks a reader", len(fuzzed)),
    ):
        lines.append(f"{invariant:<44}{looks:>8}{int(invariant == broken):>6}")
    lines += ["", f"{'taken at most':<14}{'RSS MiB':>9}{'peak':>6}{'files':>7}{'threads':>9}"]
    for name, most in sorted(account.most.items()):
        lines.append(
            f"{name:<14}{most.memory // _MEGABYTE:>9}{most.peak // _MEGABYTE:>6}"
            f"{most.descriptors:>7}{most.threads:>9}"
        )
    return "\n".join([*lines, "", *fuzzed])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; give the exit code."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args(arguments)
    chance = random.Random(flags.seed)  # noqa: S311 - a mix, no secret
    seconds = flags.minutes * 60
    account, fuzzed, logs = Account(), list[str](), Path("build/soak")
    # A short name: a unix socket's path has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="xsoak"))
    try:
        with Node.running(folder, chance) as node:
            _say(f"soaking {flags.minutes:g} minutes, seed {flags.seed}")
            if node.lacking:
                _say(f"left out what needs: {', '.join(sorted(node.lacking))} (root, and cc)")
            soak = Soak(node, seconds * (1 - _SHARE_OF_FUZZING), chance)
            account = soak.account
            soak.run()
            account.processes = 0 if account.violation else _ended(node, account)
            if account.violation:
                shutil.rmtree(logs, ignore_errors=True)
                node.keep_logs(logs)
        if not account.violation:
            fuzzed = fuzz(seconds * _SHARE_OF_FUZZING, flags.seed)
    except ViolationError as violation:
        account.violation = violation
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _say(table(account, fuzzed))
    if account.violation:
        sys.stderr.write(f"violated: {account.violation}\nlogs, if any, are in {logs}\n")
        return 1
    return 0


def _ended(node: Node, account: Account) -> int:
    try:
        return node.end()
    except ViolationError as violation:
        account.violation = violation
        return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
