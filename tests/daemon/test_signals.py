"""Signals are held before anything else is done that takes time."""

import subprocess
import sys

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
from xelink.daemon.signals import hold_signals, is_stopping
hold_signals()
print(*sorted(set(sys.modules) - before))
print(is_stopping())
import os, signal
os.kill(os.getpid(), signal.SIGTERM)
print(is_stopping())
"""


def test_they_are_held_before_any_library_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CODE, "."], capture_output=True, text=True, check=True
    )
    imported, before, after = done.stdout.splitlines()
    assert imported == "xelink xelink.daemon xelink.daemon.signals"
    assert (before, after) == ("False", "True")
