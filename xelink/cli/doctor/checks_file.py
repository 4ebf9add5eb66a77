"""Checks of the feature file, its directory, and what NFD makes of them."""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

from xelink.cli.doctor.finding import Finding, fail, hung, ok, skip, some, span, warn
from xelink.cli.doctor.inspection import MOST_FILES, Files, NodeInspection
from xelink.cli.doctor.permissions import ENTER, NFD, READ, WRITE, User, format_mode, is_allowed
from xelink.topology import nfd_format
from xelink.topology.labels import LABEL, own
from xelink.topology.nfd_format import FeatureFile
from xelink.topology.publication import AbsentError, Publication, UnusableError

_NFD = "feature.node.kubernetes.io"  # of a label without a namespace
_MISSING = {os.strerror(errno.ENOENT), os.strerror(errno.ENOTDIR)}
_NO_FILE = skip("there is no feature file to check", "fresh")


def writable(node: NodeInspection) -> Finding:
    """Check that the sidecar can write its file there: mount, space and mode bits."""
    seen, path, user = node.directory, node.locations.features_dir, node.user
    if seen.stat is None:
        return _no_directory(node)
    if not stat.S_ISDIR(seen.stat.st_mode):
        return fail(f"{path} is no directory", "remove it, and let NFD create it")
    if seen.read_only:
        return fail(
            f"{path} is mounted read-only",
            "mount it writable, or run this in the sidecar",
        )
    for what, status in ((path, seen.stat), (path / ".stage", seen.stage)):
        if status and not _is_writable(user, status):
            return fail(
                f"{user} cannot write to {what} ({format_mode(status)})",
                "chown it to the sidecar's user, or name that user with --uid"
                if user.uid
                else f"chown 0 {what}; chmod 0755 {what}",
            )
    if seen.full:
        return fail(f"the file system of {path} is full", "free space on it")
    return ok(f"{user} can write to {path}")


def _is_writable(user: User, status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) and is_allowed(user, status, WRITE | ENTER)


def _no_directory(node: NodeInspection) -> Finding:
    if why := node.hung.get("features_dir"):
        return hung(why)
    said = f"{node.locations.features_dir}: {node.directory.problem.lower()}"
    return fail(said, "install NFD, or mount features.d here")


def readable(node: NodeInspection) -> Finding:
    """Check that NFD's worker, which is not root, can read the file."""
    locations, seen, status = node.locations, node.directory, node.file_stat
    if seen.stat is None:
        return skip("there is no directory", "features.d")
    if not is_allowed(NFD, seen.stat, READ | ENTER):
        return _denied(locations.features_dir, seen.stat, "0755")
    if status is None:
        return _NO_FILE
    if not stat.S_ISREG(status.st_mode):
        said = f"{locations.feature_file} is no regular file, NFD ignores it"
        return fail(said, "remove it, xelink-sidecar writes a new one")
    if not is_allowed(NFD, status, READ):
        return _denied(locations.feature_file, status, "0644")
    closed = [path for path, parent in seen.parents if not is_allowed(NFD, parent, ENTER)]
    return _closed(closed[0]) if closed else ok(f"NFD ({NFD}) can read {locations.feature_file}")


def _denied(path: Path, status: os.stat_result, mode: str) -> Finding:
    return fail(f"NFD ({NFD}) cannot read {path} ({format_mode(status)})", f"chmod {mode} {path}")


def _closed(path: Path) -> Finding:
    return warn(
        f"{path} is closed to NFD ({NFD})",
        f"chmod o+x {path}, unless NFD mounts features.d itself, as its chart does",
    )


def fresh(node: NodeInspection) -> Finding:
    """Check that the file has not expired, and that it is renewed."""
    content = node.file.content
    if content is None or len(content) > nfd_format.FILE_LIMIT:
        return _unread(node)
    file = nfd_format.parse(content, node.now)
    age = node.now - (node.file.modified or node.now)
    written = f"written {span(age.total_seconds())} ago"
    if file.expiry is None:
        return _everlasting(node, written)
    left = file.expiry - node.now
    if left < timedelta():
        return fail(
            f"expired {span(-left.total_seconds())} ago, the labels are gone",
            "start xelink-sidecar, or see why it does not renew them: xpum, sidecar",
        )
    written += f", expires in {span(left.total_seconds())}"
    if node.renewal_missed:
        return warn(f"{written}, a renewal was missed", "see why: xpum, sidecar")
    return ok(written)


def _everlasting(node: NodeInspection, written: str) -> Finding:
    if isinstance(node.content, Publication) and not node.content.whole:
        return warn(
            "labels without expiry, as Intel's XeLink sidecar writes them: they stay forever",
            "run xelink-sidecar instead",
        )
    return warn(
        f"{written}, it never expires and outlives the sidecar",
        "run xelink-sidecar with neither -expiry 0 nor -on-exit keep",
    )


def _unread(node: NodeInspection) -> Finding:
    path = node.locations.feature_file
    if node.file.content is not None:
        return skip("too long to be read", "nfd-rules")
    if node.directory.stat is None and "--feature-file" not in node.locations.given:
        return skip("there is no directory", "features.d")
    if why := node.hung.get(node.file_call):
        return hung(why)
    return _not_there(node, path)


def _not_there(node: NodeInspection, path: Path) -> Finding:
    if node.file_stat is None and node.file.problem in _MISSING:
        return fail(f"there is no {path}", "start xelink-sidecar, or give --feature-file")
    if node.file_stat and not stat.S_ISREG(node.file_stat.st_mode):
        return skip("it is no regular file", "readable")
    said = f"{path}: {node.file.problem.lower()}"
    if "--feature-file" in node.locations.given:
        return fail(said, "run as root, or name a file that you can read")
    return skip(f"{said}; run as root")


def consistent(node: NodeInspection) -> Finding:
    """Check that the parts of the file fit together: chunks, summary, raw topology, id map."""
    match node.content:
        case None if node.file.content is None:
            return _NO_FILE
        case None:
            return skip("too long to be read", "nfd-rules")
        case AbsentError() as error:
            return fail(
                f"{error} in {node.locations.feature_file}",
                "give the -label-namespace of xelink-sidecar with --namespace",
            )
        case UnusableError() as error:
            return fail(
                f"{node.locations.feature_file}: {error}",
                "restart xelink-sidecar, which writes a new one; see writers if it comes back",
            )
        case Publication(topology=None):
            return ok("state no-fabric-data, without links")
        case Publication(topology=topology, whole=whole):
            links = len(topology.links) if topology else 0
            return ok(f"{links} links" + ("" if whole else ", from labels alone"))


def accepted(node: NodeInspection) -> Finding:
    """Check that NFD accepts every line, by its own rules and those of Kubernetes."""
    content = node.file.content
    if content is None:
        return _NO_FILE
    name = node.locations.feature_file.name
    if len(content) > nfd_format.FILE_LIMIT:
        return fail(
            f"over {nfd_format.FILE_LIMIT} bytes: NFD drops the whole file",
            "remove what is not xelink-sidecar's, or give it a higher -lane-count",
        )
    if name.startswith("."):
        return fail(f"NFD ignores {name}, because it begins with a dot", "rename it")
    file = nfd_format.parse(nfd_format.without_expiry(content), node.now)
    directives = nfd_format.parse(content, node.now).problems
    if problems := [*directives, *_rejected(file)]:
        return fail(
            f"NFD rejects {len(problems)} of its lines: {problems[0]}",
            "remove what is not xelink-sidecar's, or restart xelink-sidecar",
        )
    raw = len(file.features.keys() - file.labels.keys())
    count = f"{len(file.labels)} labels and {raw} raw features"
    if node.node_object is None:
        return ok(f"NFD would take {count}; --node-json shows whether it did")
    now = nfd_format.parse(content, node.now).labels  # none, once they have expired
    return _compared(now, *node.node_object, node.locations.namespace)


def _compared(
    file: Mapping[str, str], node: str, found: Mapping[str, str], namespace: str
) -> Finding:
    """Compare the labels of the file with those of the Node object."""
    wanted = {name if "/" in name else f"{_NFD}/{name}": value for name, value in file.items()}
    differences = {
        "are missing": [name for name in wanted if name not in found],
        "differ": [name for name in wanted if found.get(name, wanted[name]) != wanted[name]],
        "are no longer in the file": [
            name for name in found if own(name, namespace) and name not in wanted
        ],
    }
    wrong = [
        f"{len(names)} {how} ({some(names, 2)})" for how, names in differences.items() if names
    ]
    if not wrong:
        return ok(f"NFD takes {len(wanted)} labels: node {node} has them all")
    return fail(
        f"of {len(wanted)} labels on node {node}, {', '.join(wrong)}",
        "ask kubectl again in a minute; if it stays, see the logs of nfd-worker and nfd-master",
    )


def _rejected(file: FeatureFile) -> Iterator[str]:
    for name, value in file.labels.items():
        if problem := nfd_format.label_problem(name, value):
            yield problem
    for name in file.features.keys() - file.labels.keys():
        if problem := nfd_format.name_problem(name):
            yield problem


def one_writer(node: NodeInspection) -> Finding:
    """Check that no other file or sidecar has the same labels, which NFD would merge."""
    prefix = f"{node.locations.namespace}/{LABEL}"
    if node.directory.stat is None:
        return skip("there is no directory", "features.d")
    files, namespace = node.other_files, node.locations.namespace
    if files.problem:
        return _unlisted(node)
    others = [
        name
        for name, content in files.found.items()
        if any(own(label, namespace) for label in nfd_format.parse(content, node.now).features)
    ]
    if others:
        return fail(
            f"{prefix} is in {some(others)}, too: NFD merges both",
            f"stop its writer and remove it from {node.locations.features_dir}",
        )
    if (
        node.sidecar.part == "sidecar"
        and isinstance(node.content, Publication)
        and not node.content.whole
    ):
        return fail(
            "xelink-sidecar runs, but another program wrote the feature file",
            "stop the other sidecar",
        )
    return _none_of(node.other_files, prefix)


def _unlisted(node: NodeInspection) -> Finding:
    if why := node.hung.get("features_dir"):
        return hung(why)
    said = f"{node.locations.features_dir}: {node.other_files.problem.lower()}"
    if "--features-dir" in node.locations.given:
        return fail(said, "run as root, or name a directory that you can read")
    return skip(f"{said}; run as root")


def _none_of(files: Files, prefix: str) -> Finding:
    if files.unread:
        return skip(f"{some(files.unread)} cannot be read; run as root")
    if files.more:
        return skip(
            f"of {MOST_FILES + files.more} files only the first {MOST_FILES} were read, none"
            f" of them has {prefix}"
        )
    return ok(f"no other file has {prefix}")
