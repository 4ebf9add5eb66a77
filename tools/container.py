# ruff: noqa: INP001 - a program's part, not a package
"""The image in a container that is confined as a Pod's would be: by podman and runc."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "localhost/xelink:test"
TIMEOUT = 60.0
MEGABYTE = 1_000_000
USER, ROOT_USER = "65532:65532", "0:0"

# Where a process may not raise its limits (a virtual machine, a container), podman's own are too
# high; runc on control groups of version 1 needs podman to write them itself.
_LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
PODMAN = ("podman", "--runtime=runc", "--cgroup-manager=cgroupfs")
# What a Pod's security context asks for, and kubelet's network of the host.
_CONFINED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--network=host")
_UNPRIVILEGED = "--security-opt=no-new-privileges"


class ImageTestError(Exception):
    """The image is not as it must be, or this machine cannot say."""


def say(text: str) -> None:
    """Print a line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def must(claim: bool, text: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Raise `ImageTestError` with this text unless the claim holds."""
    if not claim:
        raise ImageTestError(text)


@contextmanager
def storage() -> Iterator[None]:
    """Keep the images of the block in a directory of their own, and remove it."""
    with tempfile.TemporaryDirectory(prefix="xelink-image-") as name:
        directory = Path(name)
        configuration = directory / "storage.conf"
        configuration.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{name}/graph"\nrunroot = "{name}/run"\n'
        )
        os.environ["CONTAINERS_STORAGE_CONF"] = str(configuration)
        os.environ["BUILDAH_ISOLATION"] = "chroot"  # builds where no container may be nested, too
        try:
            yield
        finally:
            for command in (("rm", "--all", "--force"), ("image", "unmount", "--all")):
                subprocess.run(  # noqa: S603 - a fixed command
                    [*PODMAN, *command], stdout=subprocess.DEVNULL, check=False
                )
            if (directory / "graph/overlay").is_mount():
                run("umount", str(directory / "graph/overlay"))


def run(*command: str) -> str:
    """Run a command; give what it printed. Raises `ImageTestError` with its last line."""
    done = subprocess.run(  # noqa: S603 - our own argument lists
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
    must(done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}: {last}")
    return done.stdout


def confined(
    *arguments: str, user: str, mounts: Sequence[Path] = (), tmp: bool = False
) -> list[str]:
    """Return the command that runs the image as a Pod's container would be."""
    volumes = [f"--volume={path}:{path}" for path in mounts]
    scratch = ["--tmpfs=/tmp"] if tmp else []
    return [
        *(*PODMAN, "run", "--rm", "--http-proxy=false", *_LIMITS, *_CONFINED, _UNPRIVILEGED),
        *(f"--user={user}", *volumes, *scratch, IMAGE, *arguments),
    ]


@contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a container while the block runs; what hangs is killed, which ends its output."""
    with subprocess.Popen(  # noqa: S603 - our own argument lists
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        watchdog = Timer(TIMEOUT, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(TIMEOUT)
            process.kill()
            watchdog.cancel()


def wait_for(lines: IO[str] | None, text: str) -> str:
    """Return the next line with this text. Raises `ImageTestError` with the last line."""
    last = "nothing"
    for line in lines or ():
        last = line.strip()
        if text in line:
            return last
    raise ImageTestError(f"{text!r} did not come; said last: {last}")
