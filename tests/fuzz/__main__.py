"""`python -m tests.fuzz TARGET SECONDS SEED`: look for bytes that break a reader, so long.

With atheris, where it can be imported, which follows the coverage; else with hypothesis. What is
found is kept in the corpus, where it is a test from then on. Exit code 1 when something was found.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.mutation import mutated

_INSTRUMENTED = ["xelink", "sidecar", "device_plugin"]
_BATCH = 100
_LONGEST = 1 << 14
FOUND = "found-"


def main(name: str, seconds: float, number: int) -> int:
    """Fuzz one target; give the exit code."""
    atheris = import_module("atheris") if find_spec("atheris") else None
    with ExitStack() as stack:
        if atheris:
            stack.enter_context(atheris.instrument_imports(include=_INSTRUMENTED))
        targets = import_module("tests.fuzz.targets")
    sys.stdout.write(f"{name}: {'atheris' if atheris else 'hypothesis'}, {seconds:g} s\n")
    sys.stdout.flush()
    if atheris:
        return _guided(atheris, targets, name, seconds, number)
    with targets.target(name) as target:
        return guess(target, targets.CORPUS / name, seconds, number)


def _guided(
    atheris: ModuleType, targets: ModuleType, name: str, seconds: float, number: int
) -> int:
    """Let libFuzzer look; it ends the process, with an exit code of its own when it found one."""
    with targets.target(name) as target, tempfile.TemporaryDirectory() as grown:
        atheris.Setup(
            [
                "fuzz",
                f"-max_total_time={max(1, int(seconds))}",
                f"-seed={number % (1 << 31) or 1}",
                f"-max_len={_LONGEST}",
                "-timeout=20",
                "-rss_limit_mb=2048",
                "-verbosity=0",
                "-print_final_stats=1",
                f"-artifact_prefix={targets.CORPUS / name / FOUND}",
                grown,
                str(targets.CORPUS / name),
            ],
            target,
        )
        atheris.Fuzz()
    return 0


def guess(target: Callable[[bytes], None], folder: Path, seconds: float, number: int) -> int:
    """Try what is like the corpus in a folder; keep there what breaks the target. Gives 0 or 1."""
    corpus = [path.read_bytes() for path in sorted(folder.iterdir())]
    last = b""
    tried = 0
    until = time.monotonic() + seconds

    def attempt(data: bytes) -> None:
        nonlocal last, tried
        last, tried = data, tried + 1
        target(data)

    while time.monotonic() < until:
        number += 1
        quiet = settings(
            max_examples=_BATCH,
            database=None,
            deadline=None,
            suppress_health_check=[*HealthCheck],
            phases=[Phase.generate, Phase.shrink],
            print_blob=False,
        )
        try:
            seed(number)(quiet(given(mutated(corpus))(attempt)))()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
            kept = keep(folder, last)
            sys.stdout.write(f"{folder.name}: {type(error).__name__}: {error}\nkept as {kept}\n")
            return 1
    sys.stdout.write(f"{folder.name}: {tried} cases, nothing found\n")
    return 0


def keep(folder: Path, data: bytes) -> Path:
    """Keep a case in the corpus."""
    path = folder / f"{FOUND}{sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
