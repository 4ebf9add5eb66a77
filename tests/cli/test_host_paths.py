"""Places of a host: links lead where they lead there, and a mount that does not answer is named."""

import ctypes
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.commands import Xelink, topology
from tests.nfd.test_writer_mounts import LIBC
from tests.patience import PATIENCE
from tests.processes import running
from xelink.cli.host_paths import below
from xelink.cli.timed_calls import SECONDS, mount_of
from xelink.simulators.node import blueprint
from xelink.simulators.xpu_manager import Blueprint
from xelink.topology import publication
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication

FEATURES_D = "etc/kubernetes/node-feature-discovery/features.d"
FILE = "xpum-sidecar-labels.txt"
DETACH = 2


def features(gpus: int) -> bytes:
    seen = topology(Blueprint(gpus=gpus).build())
    return publication.render(Publication(seen), DEFAULT_NAMESPACE)


@pytest.mark.parametrize(
    ("links", "path", "seen"),
    [
        ({}, "/a/b", "a/b"),
        ({"a": "/x"}, "/a/b", "x/b"),
        ({"a": "x"}, "/a/b", "x/b"),
        ({"c/a": "../x"}, "/c/a/b", "x/b"),
        ({"a": "/../../x"}, "/a/b", "x/b"),
        ({"c/a": "../../../../x"}, "/c/a", "x"),
        ({"a": "/x", "x": "/y"}, "/a", "y"),
        ({"a": "./x/."}, "/a/b", "x/b"),
        ({"a": "/"}, "/a/b", "b"),
        ({}, "/a/../b", "b"),
        ({}, "/../../b", "b"),
    ],
)
def test_a_link_leads_where_it_leads_on_the_host(
    tmp_path: Path, links: dict[str, str], path: str, seen: str
) -> None:
    for name, target in links.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    assert below(tmp_path, Path(path)) == tmp_path / seen
    assert below(Path("/"), Path(path)) == Path(path)


def test_links_without_an_end_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/b")
    (tmp_path / "b").symlink_to("/a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        below(tmp_path, Path("/a/c"))


@given(
    st.dictionaries(st.sampled_from("abc"), st.text("abc./", min_size=1, max_size=12)),
    st.text("abc./", max_size=12),
)
def test_no_link_leads_out_of_the_prefix(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str], path: str
) -> None:
    prefix = tmp_path_factory.mktemp("host")
    for name, target in links.items():
        (prefix / name).symlink_to(target)
    try:
        seen = below(prefix, Path(f"/{path}"))
    except OSError:
        return
    assert seen.is_relative_to(prefix)
    assert ".." not in seen.parts
    assert not any(part.is_symlink() for part in (seen, *seen.parents) if part != prefix)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host whose directories are elsewhere on it, seen at a prefix; and decoys outside of it.

    Each link is absolute: below the prefix it leads to the host's own, outside to the decoy.
    """
    prefix = tmp_path / "host"
    elsewhere = tmp_path / "elsewhere"
    for root, gpus in ((prefix, 4), (Path("/"), 2)):
        real = root / elsewhere.relative_to("/")
        (real / "features.d").mkdir(parents=True)
        (real / "features.d" / FILE).write_bytes(features(gpus))
        (real / "kubelet/device-plugins").mkdir(parents=True)
        (real / "sys/class/drm").mkdir(parents=True)
    blueprint.TreeBlueprint(gpus=4).build(prefix / elsewhere.relative_to("/"))
    (prefix / FEATURES_D).parent.mkdir(parents=True)
    (prefix / FEATURES_D).symlink_to(elsewhere / "features.d")
    (prefix / "var/lib").mkdir(parents=True)
    (prefix / "var/lib/kubelet").symlink_to(elsewhere / "kubelet")
    (prefix / "sys").symlink_to(elsewhere / "sys")
    return prefix


def checks(xelink: Xelink, *options: str) -> dict[str, dict[str, str]]:
    said = xelink("doctor", "--output=json", "--xpum-port=1", *options)
    return {one["check"]: one for one in json.loads(said.out)["checks"]}


def test_doctor_stays_below_the_prefix(xelink: Xelink, host: Path) -> None:
    found = checks(xelink, f"--prefix={host}", "--only=consistent,features.d,kubelet")
    inside = f"{host}{host.parent}/elsewhere"
    assert found["consistent"]["reason"] == "12 links"  # of four GPUs
    assert f"{inside}/features.d" in found["features.d"]["reason"]
    assert f"{inside}/kubelet/device-plugins" in found["kubelet"]["reason"]


@pytest.mark.parametrize("option", ["--features-dir", "--feature-file"])
def test_a_path_that_is_named_below_the_prefix_stays_there_too(
    xelink: Xelink, host: Path, option: str
) -> None:
    path = host / FEATURES_D / (FILE if option == "--feature-file" else "")
    found = checks(xelink, f"--prefix={host}", f"{option}={path}", "--only=consistent")
    assert found["consistent"]["reason"] == "12 links"


def test_a_feature_file_that_is_a_link_leads_to_the_hosts_own(xelink: Xelink, host: Path) -> None:
    directory = host / host.parent.relative_to("/") / "elsewhere/features.d"
    (directory / FILE).rename(directory / "real")
    (directory / FILE).symlink_to(host.parent / "elsewhere/features.d/real")
    (host.parent / "elsewhere/features.d/real").write_bytes(features(2))
    found = checks(xelink, f"--prefix={host}", "--only=consistent,readable")
    assert found["consistent"]["reason"] == "12 links"
    assert "is no regular file, NFD ignores it" in found["readable"]["reason"]


def test_sysfs_stays_below_the_prefix(xelink: Xelink, host: Path) -> None:
    found = checks(xelink, f"--prefix={host}", "--only=id-map")
    assert found["id-map"]["status"] == "ok"
    assert found["id-map"]["reason"].endswith("matches sysfs: 4 GPUs")


def test_show_stays_below_the_prefix(xelink: Xelink, host: Path) -> None:
    said = xelink("show", f"--prefix={host}", "--output=json")
    (node,) = json.loads(said.out)["nodes"]
    assert len(node["gpus"]) == 4
    (host / FEATURES_D).unlink()
    (host / FEATURES_D).symlink_to(f"/{FEATURES_D}")
    said = xelink("show", f"--prefix={host}")
    assert said.code == 1
    assert said.err.startswith(f"xelink show: --prefix {host}: Too many levels of symbolic links")


TABLE = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:5 / /dev rw - devtmpfs none rw
41 22 0:40 / /etc/kubernetes rw shared:7 master:2 - nfs4 server:/export rw,vers=4.2
42 41 0:41 / /etc/kubernetes/with\\040blank rw - tmpfs tmpfs rw
43 22 0:42 / /mnt rw - ext4 /dev/first rw
44 22 0:43 / /mnt rw - ext4 /dev/second rw
what is no row
"""


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/etc/passwd", "/ (ext4 of /dev/root)"),
        ("/etc/kubernetes", "/etc/kubernetes (nfs4 of server:/export)"),
        ("/etc/kubernetes/x/y", "/etc/kubernetes (nfs4 of server:/export)"),
        ("/etc/kubernetes/with blank/x", "/etc/kubernetes/with blank (tmpfs of tmpfs)"),
        ("/etc/kubernetes-other", "/ (ext4 of /dev/root)"),
        ("/mnt/x", "/mnt (ext4 of /dev/second)"),
    ],
)
def test_a_mount_is_known_by_the_kernels_table(path: str, told: str) -> None:
    assert mount_of(Path(path), TABLE) == told
    assert mount_of(Path(path), "") == "that holds it"


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[Path]:
    """A mount that never answers: a file system in user space that nobody serves."""
    place = tmp_path / "dead"
    place.mkdir()
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"there is no FUSE here: {error.strerror}")
    options = f"fd={descriptor},rootmode=40755,user_id=0,group_id=0".encode()
    if LIBC.mount(b"nobody", os.fsencode(place), b"fuse", 0, options):
        os.close(descriptor)
        pytest.skip(f"FUSE cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield place
    finally:
        os.close(descriptor)  # whoever waits is let go
        LIBC.umount2(os.fsencode(place), DETACH)


@pytest.mark.parametrize(
    ("option", "check"),
    [
        ("--features-dir", "features.d"),
        ("--feature-file", "fresh"),
        ("--plugin-dir", "kubelet"),
        ("--prefix", "features.d"),
    ],
)
def test_doctor_ends_beside_a_dead_mount_and_names_it(dead: Path, option: str, check: str) -> None:
    given = dead / "file" if option == "--feature-file" else dead
    options = [f"{option}={given}", "--xpum-port=1", "--output=json"]
    with running("xelink", "doctor", *options) as process:
        ended = threading.Timer(PATIENCE, process.process.kill)
        ended.start()
        code = process.wait(2 * PATIENCE)
        ended.cancel()
        said = process.output
    assert code == 1
    found = {one["check"]: one for one in json.loads(said)["checks"]}
    assert found[check]["status"] == "fail"
    place = {"features.d": given, "fresh": given, "kubelet": given}[check]
    if option == "--prefix":
        place = dead / FEATURES_D
    assert found[check]["reason"] == (
        f"{place} does not answer within {SECONDS:g} s, on the mount {dead} (fuse of nobody)"
    )
    assert found[check]["todo"].startswith("fix its file system or unmount it")


@pytest.mark.parametrize("call", [("show",), ("explain", "--want=2")], ids=" ".join)
def test_what_looks_at_this_node_ends_beside_a_dead_mount_and_names_it(
    dead: Path, call: tuple[str, ...]
) -> None:
    with running("xelink", *call, f"--prefix={dead}") as process:
        ended = threading.Timer(PATIENCE, process.process.kill)
        ended.start()
        code = process.wait(2 * PATIENCE)
        ended.cancel()
    assert code == 1
    (line,) = process.lines
    path, mount = dead / FEATURES_D / FILE, f"{dead} (fuse of nobody)"
    assert line.endswith(f"{path} does not answer within {SECONDS:g} s, on the mount {mount}")
