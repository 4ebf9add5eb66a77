"""Work in a process that ends with it, and what becomes of it when that process does not do it."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

LONG = 300_000  # more than a pipe holds

# In a Python of its own: a process with threads, as the one of the tests, must not be forked.
PROGRAM = """
import os, signal, sys
from xelink.daemon.forked import run_in_child
own = os.getpid()
def elsewhere():
    return os.getpid() != own
{before}
try:
    result = run_in_child(work)
    print(result())
except ZeroDivisionError as error:
    print("raised", error)
print(*sorted(os.listdir("/proc/self/fd")))
try:
    print("child", os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child")
"""


def told(before: str) -> list[str]:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert ended.stderr == ""
    return ended.stdout.splitlines()


DONE_HERE = [
    "def work():\n    if elsewhere(): os._exit(0)\n    return 'done here'",
    "def work():\n    if elsewhere(): os.kill(os.getpid(), signal.SIGKILL)\n    return 'done here'",
    "def work():\n    if elsewhere(): sys.exit('no')\n    return 'done here'",
    "work = lambda: 'not to be pickled' and (elsewhere() and (lambda: 0)) or 'done here'",
    "def work():\n    return 'done here'\ndef none(): raise OSError\nos.fork = none",
    "def work():\n    return 'done here'\ndef none(): raise OSError\nos.pipe = none",
]


@pytest.mark.parametrize("before", DONE_HERE)
def test_work_that_is_not_done_there_is_done_here(before: str) -> None:
    assert told(before)[0] == "done here"


def test_it_is_done_by_another_process_which_leaves_nothing_behind() -> None:
    said = told(f"def work():\n    return elsewhere(), 'x' * {LONG}")
    assert said[0] == f"(True, '{'x' * LONG}')"
    assert said[1:] == told("work = int")[1:]
    assert said[2] == "no child"


def test_what_it_imports_stays_there() -> None:
    before = "def work():\n    import wave\n    return 'wave' in sys.modules"
    program = f"{PROGRAM.format(before=before)}print('wave' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "True"
    assert done.stdout.splitlines()[-1] == "False"


def test_it_does_not_outlive_who_waits() -> None:
    before = (
        "def work():\n"
        "    print(os.getpid(), flush=True)\n"
        "    sys.stdin.read()\n"  # until the process that waits was killed
        f"    return 'x' * {LONG}"
    )
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as waits:
        assert waits.stdin
        assert waits.stdout
        works = os.pidfd_open(int(waits.stdout.readline()))
        try:
            waits.kill()
            waits.wait(PATIENCE)
            waits.stdin.close()
            assert select.select([works], [], [], PATIENCE)[0], "it still writes"
        finally:
            os.close(works)


ENDLESS = (
    "from functools import partial\n"
    "def work():\n"
    "    print(os.getpid(), flush=True)\n"
    "    while True: signal.pause()\n"
)


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        ("seconds=0.2", "the settings were not read within 0.2 s"),
        ("stopping=lambda: True", "stopped before the settings were read"),
    ],
    ids=["time", "signal"],
)
def test_what_takes_too_long_is_killed(bounds: str, why: str) -> None:
    before = (
        f"{ENDLESS}import xelink.daemon.forked\nxelink.daemon.forked._LAST = 0.2\n"
        f"run_in_child = partial(run_in_child, {bounds})\n"
        "from xelink.daemon.command import CannotStartError as ZeroDivisionError\n"
    )
    child, said, *rest = told(before)
    assert said == f"raised {why}"
    assert rest[0] == told("work = int")[1]  # no descriptor is left
    assert not Path(f"/proc/{child}/fd").exists() or not [*Path(f"/proc/{child}/fd").iterdir()]


def test_it_dies_with_who_waits_even_while_it_is_busy() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(before=ENDLESS)], stdout=subprocess.PIPE, text=True
    ) as waits:
        assert waits.stdout
        works = os.pidfd_open(int(waits.stdout.readline()))
        try:
            waits.kill()
            assert select.select([works], [], [], 20)[0], "it still works"
        finally:
            os.close(works)


def test_it_raises_what_the_work_raises() -> None:
    assert told("def work(): return 1 // 0")[0] == "raised integer division or modulo by zero"


def test_nobody_needs_to_hear_of_its_end() -> None:
    before = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\ndef work(): return elsewhere()"
    assert told(before)[0] == "True"
