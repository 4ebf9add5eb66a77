# ruff: noqa: INP001 - a program, not a package
"""Build the container image and run it here, as a Pod would: `make image-test`, as root on Debian.

The base is a root file system of Debian's packages; the image is built by `make image`, and run by
podman and runc with a read-only root, no capabilities, no new privileges and a seccomp filter:
`xelink-sidecar` against the simulated XPU Manager of the same image, `xelink-device-plugin` against
a simulated kubelet, `xelink demo`. One line for each step; exit code 1 and one line when one fails.

Everything but the cached base is in a temporary directory that goes at the end, or in layers above
the machine's directories (tools/apart.sh): the builders keep caches and locks of their own. Files
named by PIP_CONFIG_FILE (or /etc/pip.conf) and SSL_CERT_FILE are given to the build as secrets.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import image_contents
from container import (
    IMAGE,
    MEGABYTE,
    PODMAN,
    ROOT,
    ROOT_USER,
    TIMEOUT,
    USER,
    ImageTestError,
    confined,
    must,
    run,
    say,
    started,
    storage,
    wait_for,
)

from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node.sysfs import NodeTree
from xelink.topology.nfd_format import parse

CACHE = ROOT / ".cache" / "image"
SUITE = "trixie"
BASE = "localhost/debian:test"
NEEDED = ("debootstrap", "buildah", "podman", "runc", "make", "git")
RESOURCE = "gpu.intel.com/i915"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, run, say; give the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--tool", choices=("buildah", "podman"), default="buildah")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="of Debian")
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    try:
        _require()
        if not options.apart:
            return _apart("--apart", *arguments)
        with storage():
            _import_base(_base(options.mirror))
            _build(options.tool)
            for look in LOOKS:
                look()
    except ImageTestError as error:
        sys.stderr.write(f"image-test: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    say("the image is fine")
    return 0


# This machine


def _require() -> None:
    missing = [tool for tool in NEEDED if not shutil.which(tool)]
    must(
        not missing,
        f"needs {', '.join(missing)}; on Debian: apt-get install --no-install-recommends"
        f" {' '.join(missing)}",
    )
    must(os.geteuid() == 0, "needs root, for debootstrap and to run the image")


def _apart(*arguments: str) -> int:
    """Run this program where it changes no file outside the tree; give its exit code."""
    with tempfile.TemporaryDirectory(prefix="xelink-image-") as name:
        command = ("unshare", "--mount", ROOT / "tools" / "apart.sh", name)
        return subprocess.run(  # noqa: S603 - our own argument lists
            [*command, sys.executable, __file__, *arguments],
            env={**os.environ, "TMPDIR": name},
            check=False,
        ).returncode


# The build


def _base(mirror: str) -> Path:
    """Return a tar file of Debian's minimal root file system, made once."""
    tar = CACHE / f"{SUITE}-{platform.machine()}.tar"
    if not tar.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="xelink-base-") as name:
            run("debootstrap", "--variant=minbase", SUITE, f"{name}/root", mirror)
            run("tar", "--create", f"--file={name}/base.tar", f"--directory={name}/root", ".")
            shutil.move(f"{name}/base.tar", tar)
    say(f"base: {tar.relative_to(ROOT)}, {tar.stat().st_size / MEGABYTE:.0f} MB")
    return tar


def _import_base(tar: Path) -> None:
    run(*PODMAN, "import", "--quiet", str(tar), BASE)


def _build(tool: str) -> None:
    secrets = {
        "pip.conf": os.environ.get("PIP_CONFIG_FILE", "/etc/pip.conf"),
        "ca": os.environ.get("SSL_CERT_FILE", ""),
    }
    flags = " ".join(
        f"--secret id={name},src={path}" for name, path in secrets.items() if Path(path).is_file()
    )
    run(
        *("make", "image", f"CONTAINER_TOOL={tool}", f"BASE={BASE}", f"IMAGE={IMAGE}"),
        f"IMAGE_FLAGS={flags}",
    )
    say(f"built by {tool}: {IMAGE}")


# The image at work


def _privileges() -> None:
    """Show that the root is read-only and the process has no privilege: else the rest says less."""
    probe = (
        "import os; status = dict(line.split(':\\t') for line in open('/proc/self/status'));"
        "print(os.getuid(), int(status['CapEff'], 16) + int(status['CapBnd'], 16),"
        " status['NoNewPrivs'].strip(), status['Seccomp'].strip());"
        "open('/written', 'w')"
    )
    for user in (USER, ROOT_USER):
        done = subprocess.run(  # noqa: S603 - our own argument list
            confined("python", "-c", probe, user=user), capture_output=True, text=True, check=False
        )
        must("Read-only file system" in done.stderr, f"the root is not read-only: {done.stderr}")
        wanted = f"{user.partition(':')[0]} 0 1 2"
        must(done.stdout.strip() == wanted, f"privileges are {done.stdout!r}, not {wanted!r}")
    say("confined: read-only root, no capabilities, no new privileges, seccomp; as user and root")


@contextmanager
def _xpu_manager() -> Iterator[int]:
    """Run the simulated XPU Manager of the image; give its port."""
    simulator = confined("python", "-m", "xelink.simulators.xpu_manager", "--port=0", user=USER)
    with started(simulator) as process:
        port = wait_for(process.stdout, "http://").rpartition(":")[2].partition("/")[0]
        yield int(port)


def _oneshot() -> None:
    """Publish once, as the image's own user and as root without capabilities, as in the Pod."""
    for user in (USER, ROOT_USER):
        with tempfile.TemporaryDirectory(prefix="xl-") as name, _xpu_manager() as port:
            directory = Path(name)
            os.chown(directory, *map(int, user.split(":")))
            run(*_sidecar(port, directory, "-oneshot", user=user))
            _published(directory)
    say("xelink-sidecar -oneshot: a feature file with 56 links, as user and as root")


def _sidecar(port: int, directory: Path, *arguments: str, user: str) -> list[str]:
    return confined(
        "xelink-sidecar",
        *(f"-xpum-port={port}", f"-tmp-dir-prefix={directory}"),
        *(f"-dst-file-path={_labels(directory)}", *arguments),
        user=user,
        mounts=[directory],
    )


def _labels(directory: Path) -> Path:
    return directory / "xpum-sidecar-labels.txt"


def _published(directory: Path) -> None:
    labels = parse(_labels(directory).read_bytes(), datetime.now(UTC)).labels
    count = labels.get("gpu.intel.com/xe-links.count")
    must(count == "56", f"published {count} links, not 56")
    must(_labels(directory).stat().st_mode & 0o777 == 0o644, "NFD cannot read the feature file")  # noqa: PLR2004 - what NFD needs


def _daemons() -> None:
    """Run both daemons as in the Pod: the sidecar writes, the plugin reads and answers kubelet."""
    with (
        tempfile.TemporaryDirectory(prefix="xl-") as name,
        _xpu_manager() as port,
        Kubelet(Path(name) / "k") as kubelet,
    ):
        directory = Path(name)
        features, node, cdi = (directory / part for part in ("f", "n", "c"))
        features.mkdir()
        cdi.mkdir()
        NodeTree.eight_max_1550(node)
        sidecar = _sidecar(
            port, features, "-startup-delay=0", "-interval=1", "-listen=127.0.0.1:0", user=ROOT_USER
        )
        plugin = confined(
            *("xelink-device-plugin", f"-prefix={node}", f"-plugin-dir={kubelet.directory}"),
            *(f"-label-file={_labels(features)}", f"-cdi-dir={cdi}", "-listen=127.0.0.1:0"),
            user=ROOT_USER,
            mounts=[node, kubelet.directory, features, cdi],
        )
        with started(sidecar) as writer, started(plugin) as reader:
            probes = [
                wait_for(process.stderr, "event=started").partition("listen=")[2].split()[0]
                for process in (writer, reader)
            ]
            wait_for(writer.stderr, "labels published")
            wait_for(reader.stderr, "in use")
            kubelet.wait_for_allocatable(RESOURCE, 8, TIMEOUT)
            pod = kubelet.run_pod("four", RESOURCE, 4)
            must(pod.env.get("XELINK_LINKED") == "all", f"a Pod got {dict(pod.env)}")
            must(any(cdi.iterdir()), "no CDI spec was written")
            memory = [_probe(address) for address in probes]
            for process in (writer, reader):
                process.terminate()
                must(process.wait(TIMEOUT) == 0, "a daemon did not end well")
        _published(features)
    say("daemons: ready, a Pod got 4 GPUs, all linked; ended by SIGTERM with exit code 0")
    say("memory: xelink-sidecar {:.0f} MB, xelink-device-plugin {:.0f} MB".format(*memory))


def _probe(address: str) -> float:
    """Ask a daemon whether it is ready; give its resident memory in MB."""
    opened = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    try:
        with opened(f"http://{address}/readyz", timeout=TIMEOUT):
            pass
        with opened(f"http://{address}/metrics", timeout=TIMEOUT) as answer:
            lines = answer.read().decode().splitlines()
    except urllib.error.HTTPError as error:
        with error:
            raise ImageTestError(f"not ready: {error.read().decode().strip()}") from error
    found = next(line for line in lines if line.startswith("process_resident_memory_bytes "))
    return float(found.split()[1]) / MEGABYTE


def _demo() -> None:
    said = run(*confined("xelink", "demo", user=USER, tmp=True))
    must("That is all." in said, "xelink demo did not come to its end")
    say("xelink demo: all of it")


LOOKS = (
    image_contents.configuration,
    image_contents.files,
    _privileges,
    _oneshot,
    _daemons,
    _demo,
)
"""Each raises `ImageTestError` where the image is not as it must be, else says a line."""

if __name__ == "__main__":
    sys.exit(main())
