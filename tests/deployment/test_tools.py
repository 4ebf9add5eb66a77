"""`make deployment-tools` fails where something is missing in the end, and names each."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "tools/deployment-tools.sh"


def test_what_cannot_be_had_is_named_and_fails(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / NAME, tmp_path / NAME)
    path = tmp_path / "path"
    path.mkdir()
    for name in ("dirname", "mkdir", "mktemp", "rm"):  # and no Go, no apt-get, no openssl
        found = shutil.which(name)
        assert found
        (path / name).symlink_to(found)
    done = subprocess.run(
        ["/bin/bash", NAME],
        cwd=tmp_path,
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "missing: kubectl: install it, or Go to build it",
        "missing: cdi-resolve: install Go to build it",
        "missing: promtool: install Prometheus",
        "missing: openssl: install it",
        "missing: definitions of custom resources: install Go",
    ]
