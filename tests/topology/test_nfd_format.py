from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data import vectors
from xelink.topology.nfd_format import (
    FILE_LIMIT,
    format_expiry,
    format_raw,
    label_problem,
    namespace_problem,
    parse,
)

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize("case", vectors("nfd_local_vectors.json"))
def test_files_are_read_as_nfd_reads_them(case: dict[str, dict[str, str]]) -> None:
    labels: dict[str, str] = {}
    features: dict[str, str] = {}
    problems: list[str] = []
    for name in sorted(case["files"]):
        if "/" in name:  # NFD reads no directories
            continue
        file = parse(case["files"][name].encode(), NOW)
        labels |= file.labels
        features |= file.features
        problems += file.problems
    published = {name: value for name, value in labels.items() if not label_problem(name, value)}
    assert labels == case["local_label"]
    assert features == case["local_feature"]
    assert published == case["published_labels"]
    parse_errors = [line for line in case.get("log", ()) if "parsing directives" in line]
    assert len(problems) == len(parse_errors)


def test_a_longer_file_is_dropped_as_a_whole() -> None:
    line = b"vendor.io/a=1\n"
    assert parse(line.ljust(FILE_LIMIT, b"#"), NOW).labels == {"vendor.io/a": "1"}
    assert parse(line.ljust(FILE_LIMIT + 1, b"#"), NOW).labels == {}


@given(st.binary(max_size=300))
def test_any_bytes_are_read(content: bytes) -> None:
    parse(content, NOW)


@given(st.datetimes(timezones=st.just(UTC), min_value=datetime(2000, 1, 1)))  # noqa: DTZ001 - hypothesis wants it naive
def test_an_expiry_that_we_write_is_read(instant: datetime) -> None:
    whole = instant.replace(microsecond=0)
    content = f"{format_expiry(instant)}\nvendor.io/a=1\n".encode()
    assert parse(content, whole).labels == {"vendor.io/a": "1"}
    assert parse(content, whole).expiry == whole
    late = parse(content, whole + timedelta(microseconds=1))
    assert (late.labels, late.expired) == ({}, True)


@pytest.mark.parametrize(
    "directive",
    [
        "2026-02-30T00:00:00Z",
        "2026-11-20T08:00:00",
        "2026-11-20t08:00:00z",
        "2026-11-20 08:00:00Z",
        "20261120T080000Z",
        "tomorrow",
        "",
    ],
)
def test_an_expiry_that_cannot_be_read_means_never(directive: str) -> None:
    file = parse(f"# +expiry-time={directive}\nvendor.io/a=1\n".encode(), NOW)
    assert file.labels == {"vendor.io/a": "1"}
    assert file.problems


def test_bytes_that_are_no_text_are_no_part_of_a_value_and_are_not_passed_over() -> None:
    (label,) = parse(b"vendor.io/a=1\xff\n", NOW).labels.items()
    assert label != ("vendor.io/a", "1")
    assert label_problem(*label)


def test_a_raw_feature_never_becomes_a_label() -> None:
    file = parse(f"{format_raw('vendor.io/a', '{any: =value}')}\nvendor.io/b=1\n".encode(), NOW)
    assert file.labels == {"vendor.io/b": "1"}
    assert file.features == {"vendor.io/a": "{any: =value}", "vendor.io/b": "1"}


@pytest.mark.parametrize(
    ("namespace", "fine"),
    [
        ("gpu.intel.com", True),
        ("a", True),
        ("x" * 254, False),
        ("GPU.intel.com", False),
        ("gpu_intel.com", False),
        ("", False),
        ("gpu.intel.com/x", False),
        ("kubernetes.io", False),
        ("node.kubernetes.io", False),
        ("feature.node.kubernetes.io", True),
        ("gpu.feature.node.kubernetes.io", True),
        ("notkubernetes.io", True),
    ],
)
def test_namespaces_that_nfd_accepts(namespace: str, fine: bool) -> None:  # noqa: FBT001 - a column
    assert (namespace_problem(namespace) is None) is fine
