"""The feature file, its directory, and what NFD makes of them, by what the probe saw."""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

from xelink.cli.doctor.finding import Finding, fail, hung, ok, skip, some, span, warn
from xelink.cli.doctor.permissions import ENTER, NFD, READ, WRITE, may, spelled
from xelink.cli.doctor.probe import MOST_FILES, Files, Visit
from xelink.topology import nfd_format
from xelink.topology.labels import LABEL, own
from xelink.topology.nfd_format import FeatureFile
from xelink.topology.publication import AbsentError, Publication, UnusableError

_NFD = "feature.node.kubernetes.io"  # of a label without a namespace
_MISSING = {os.strerror(errno.ENOENT), os.strerror(errno.ENOTDIR)}
_NO_FILE = skip("there is no feature file to judge", "fresh")


def writable(visit: Visit) -> Finding:
    """Check that the sidecar can put its file there: by mount, by space and by mode bits."""
    seen, path, user = visit.directory, visit.place.features_dir, visit.user
    if seen.told is None:
        return _no_directory(visit)
    if not stat.S_ISDIR(seen.told.st_mode):
        return fail(f"{path} is no directory", "remove it, and let NFD make it")
    if seen.read_only:
        return fail(
            f"{path} is mounted read-only", "mount it writable, or ask in the sidecar's container"
        )
    for what, told in ((path, seen.told), (path / ".stage", seen.stage)):
        if told and not (stat.S_ISDIR(told.st_mode) and may(user, told, WRITE | ENTER)):
            return fail(
                f"{user} cannot write to {what} ({spelled(told)})",
                "chown it to the sidecar's user, or say who that is with --uid"
                if user.uid
                else f"chown 0 {what}; chmod 0755 {what}",
            )
    if seen.full:
        return fail(f"the file system of {path} is full", "free space on it")
    return ok(f"{user} can write to {path}")


def _no_directory(visit: Visit) -> Finding:
    if why := visit.hung.get("features_dir"):
        return hung(why)
    said = f"{visit.place.features_dir}: {visit.directory.problem.lower()}"
    return fail(said, "install NFD, or mount features.d here")


def readable(visit: Visit) -> Finding:
    """Check that NFD's worker, which is not root, can read the file."""
    place, seen, told = visit.place, visit.directory, visit.file_told
    if seen.told is None:
        return skip("there is no directory", "features.d")
    if not may(NFD, seen.told, READ | ENTER):
        return _barred(place.features_dir, seen.told, "0755")
    if told is None:
        return _NO_FILE
    if not stat.S_ISREG(told.st_mode):
        said = f"{place.feature_file} is no regular file, NFD passes it over"
        return fail(said, "remove it, xelink-sidecar writes it anew")
    if not may(NFD, told, READ):
        return _barred(place.feature_file, told, "0644")
    closed = [path for path, parent in seen.parents if not may(NFD, parent, ENTER)]
    return _closed(closed[0]) if closed else ok(f"NFD ({NFD}) can read {place.feature_file}")


def _barred(path: Path, told: os.stat_result, mode: str) -> Finding:
    return fail(f"NFD ({NFD}) cannot read {path} ({spelled(told)})", f"chmod {mode} {path}")


def _closed(path: Path) -> Finding:
    return warn(
        f"{path} is closed to NFD ({NFD})",
        f"chmod o+x {path}, unless NFD mounts features.d itself, as its chart does",
    )


def fresh(visit: Visit) -> Finding:
    """Check that the file speaks now, and that somebody renews it."""
    content = visit.file.content
    if content is None or len(content) > nfd_format.FILE_LIMIT:
        return _unread(visit)
    file = nfd_format.parse(content, visit.now)
    age = visit.now - (visit.file.modified or visit.now)
    written = f"written {span(age.total_seconds())} ago"
    if file.expiry is None:
        return _everlasting(visit, written)
    left = file.expiry - visit.now
    if left < timedelta():
        return fail(
            f"expired {span(-left.total_seconds())} ago, the labels are gone",
            "start xelink-sidecar, or see why it does not renew them: xpum, sidecar",
        )
    written += f", expires in {span(left.total_seconds())}"
    if visit.renewal_missed:
        return warn(f"{written}, a renewal was missed", "see why: xpum, sidecar")
    return ok(written)


def _everlasting(visit: Visit, written: str) -> Finding:
    if isinstance(visit.said, Publication) and not visit.said.whole:
        return warn(
            "labels without expiry, as the reference sidecar writes them: they stay for ever",
            "run xelink-sidecar in its place",
        )
    return warn(
        f"{written}, it never expires and outlives the sidecar",
        "run xelink-sidecar with neither -expiry 0 nor -on-exit keep",
    )


def _unread(visit: Visit) -> Finding:
    path = visit.place.feature_file
    if visit.file.content is not None:
        return skip("too long to be read", "nfd-rules")
    if visit.directory.told is None and "--feature-file" not in visit.place.given:
        return skip("there is no directory", "features.d")
    if why := visit.hung.get(visit.file_look):
        return hung(why)
    return _not_there(visit, path)


def _not_there(visit: Visit, path: Path) -> Finding:
    if visit.file_told is None and visit.file.problem in _MISSING:
        return fail(f"there is no {path}", "start xelink-sidecar, or give --feature-file")
    if visit.file_told and not stat.S_ISREG(visit.file_told.st_mode):
        return skip("it is no regular file", "readable")
    said = f"{path}: {visit.file.problem.lower()}"
    if "--feature-file" in visit.place.given:
        return fail(said, "ask as root, or name a file that you can read")
    return skip(f"{said}; ask as root")


def consistent(visit: Visit) -> Finding:
    """Check that the parts of the file fit together: chunks, summary, raw topology, id map."""
    match visit.said:
        case None if visit.file.content is None:
            return _NO_FILE
        case None:
            return skip("too long to be read", "nfd-rules")
        case AbsentError() as error:
            return fail(
                f"{error} in {visit.place.feature_file}",
                "give the -label-namespace of xelink-sidecar with --namespace",
            )
        case UnusableError() as error:
            return fail(
                f"{visit.place.feature_file}: {error}",
                "restart xelink-sidecar, which writes it anew; see writers if it comes back",
            )
        case Publication(topology=None):
            return ok("state no-fabric-data, without links")
        case Publication(topology=topology, whole=whole):
            links = len(topology.links) if topology else 0
            return ok(f"{links} links" + ("" if whole else ", from labels alone"))


def accepted(visit: Visit) -> Finding:
    """Check that NFD takes every line, by its own rules and those of Kubernetes."""
    content = visit.file.content
    if content is None:
        return _NO_FILE
    name = visit.place.feature_file.name
    if len(content) > nfd_format.FILE_LIMIT:
        return fail(
            f"over {nfd_format.FILE_LIMIT} bytes: NFD drops the whole file",
            "remove what is not xelink-sidecar's, or give it a higher -lane-count",
        )
    if name.startswith("."):
        return fail(f"NFD passes over {name}, as it begins with a dot", "rename it")
    file = nfd_format.parse(nfd_format.without_expiry(content), visit.now)
    directives = nfd_format.parse(content, visit.now).problems
    if problems := [*directives, *_refused(file)]:
        return fail(
            f"NFD refuses {len(problems)} of its lines: {problems[0]}",
            "remove what is not xelink-sidecar's, or restart that",
        )
    raw = len(file.features.keys() - file.labels.keys())
    count = f"{len(file.labels)} labels and {raw} raw features"
    if visit.node is None:
        return ok(f"NFD would take {count}; --node-json tells whether it did")
    now = nfd_format.parse(content, visit.now).labels  # none, once they have expired
    return _compared(now, *visit.node, visit.place.namespace)


def _compared(
    file: Mapping[str, str], node: str, found: Mapping[str, str], namespace: str
) -> Finding:
    """Hold the labels of the file against those of the Node object."""
    wanted = {name if "/" in name else f"{_NFD}/{name}": value for name, value in file.items()}
    differences = {
        "are missing": [name for name in wanted if name not in found],
        "differ": [name for name in wanted if found.get(name, wanted[name]) != wanted[name]],
        "are no longer in the file": [
            name for name in found if own(name, namespace) and name not in wanted
        ],
    }
    told = [f"{len(names)} {how} ({some(names, 2)})" for how, names in differences.items() if names]
    if not told:
        return ok(f"NFD takes {len(wanted)} labels: node {node} has them all")
    return fail(
        f"of {len(wanted)} labels on node {node}, {', '.join(told)}",
        "ask kubectl again in a minute; if it stays, see the logs of nfd-worker and nfd-master",
    )


def _refused(file: FeatureFile) -> Iterator[str]:
    for name, value in file.labels.items():
        if problem := nfd_format.label_problem(name, value):
            yield problem
    for name in file.features.keys() - file.labels.keys():
        if problem := nfd_format.name_problem(name):
            yield problem


def one_writer(visit: Visit) -> Finding:
    """Check that nobody else publishes the same labels: NFD would mix both."""
    prefix = f"{visit.place.namespace}/{LABEL}"
    if visit.directory.told is None:
        return skip("there is no directory", "features.d")
    files, namespace = visit.other_files, visit.place.namespace
    if files.problem:
        return _unlisted(visit)
    others = [
        name
        for name, content in files.found.items()
        if any(own(label, namespace) for label in nfd_format.parse(content, visit.now).features)
    ]
    if others:
        return fail(
            f"{prefix} is in {some(others)}, too: NFD mixes both",
            f"stop its writer and remove it from {visit.place.features_dir}",
        )
    if (
        visit.sidecar.part == "sidecar"
        and isinstance(visit.said, Publication)
        and not visit.said.whole
    ):
        return fail(
            "xelink-sidecar runs, but another program wrote the feature file",
            "stop the other sidecar",
        )
    return _none_of(visit.other_files, prefix)


def _unlisted(visit: Visit) -> Finding:
    if why := visit.hung.get("features_dir"):
        return hung(why)
    said = f"{visit.place.features_dir}: {visit.other_files.problem.lower()}"
    if "--features-dir" in visit.place.given:
        return fail(said, "ask as root, or name a directory that you can read")
    return skip(f"{said}; ask as root")


def _none_of(files: Files, prefix: str) -> Finding:
    if files.unread:
        return skip(f"{some(files.unread)} cannot be read; ask as root")
    if files.unseen:
        return skip(
            f"of {MOST_FILES + files.unseen} files only the first {MOST_FILES} were looked at, none"
            f" of them has {prefix}"
        )
    return ok(f"no other file has {prefix}")
