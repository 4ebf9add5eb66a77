"""Sources: whatever they hold, one line tells what is wrong; a live XPU Manager, too."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.commands import EXAMPLES, Said, Xelink, labels, topology
from tests.data import BODIES, DATA, needs_data
from tests.processes import running
from tests.test_linear import MANY, bounded
from xelink.nfd.reader import DEFAULT_PATH
from xelink.simulators.xpu_manager import Blueprint, Serving, SimulatedNode, Simulator
from xelink.topology.labels import LABEL

OPTIONS = ("--metrics", "--features", "--node-json")
BODY = (EXAMPLES / "four.prom").read_bytes()
FEATURES = (EXAMPLES / "eight.txt").read_bytes()
NODES = (EXAMPLES / "nodes.json").read_bytes()

patiently = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


def _is_well_told(said: Said) -> None:
    """Either something is shown, or one line says why not."""
    if said.code in {1, 2}:
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert said.err.startswith("xelink ")
    else:
        assert said.code in {0, 3, 4}
        assert said.out or said.err
    assert "Traceback" not in said.err


def _both(xelink: Xelink, option: str, path: str) -> None:
    for output in ("text", "json", "svg", "dot"):
        said = xelink("show", option, path, "--output", output)
        if said.code != 2:  # a picture shows one node
            _is_well_told(said)
    _is_well_told(xelink("explain", "--want", "2", option, path))


# Bytes of any kind


@patiently
@given(content=st.binary(max_size=400), option=st.sampled_from(OPTIONS))
def test_any_bytes_are_told_in_one_line(xelink: Xelink, content: bytes, option: str) -> None:
    _both(xelink, option, xelink.file("any", content))


@st.composite
def _damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut something out of a content and put something else there."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 200)))
    return content[:start] + draw(st.binary(max_size=20)) + content[end:]


@patiently
@given(content=_damaged(BODY))
def test_a_damaged_body_is_told_in_one_line(xelink: Xelink, content: bytes) -> None:
    _both(xelink, "--metrics", xelink.file("body", content))


@patiently
@given(content=_damaged(FEATURES))
def test_a_damaged_feature_file_is_told_in_one_line(xelink: Xelink, content: bytes) -> None:
    _both(xelink, "--features", xelink.file("features", content))


@patiently
@given(content=_damaged(NODES))
def test_damaged_nodes_are_told_in_one_line(xelink: Xelink, content: bytes) -> None:
    _both(xelink, "--node-json", xelink.file("nodes", content))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "items", "metadata", "labels", "name"]) | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@patiently
@given(given_=_json | st.builds(lambda items: {"kind": "List", "items": items}, st.lists(_json)))
def test_any_json_is_told_in_one_line(xelink: Xelink, given_: object) -> None:
    _both(xelink, "--node-json", xelink.file("any.json", json.dumps(given_)))


@patiently
@given(
    values=st.dictionaries(
        st.sampled_from([LABEL, f"{LABEL}2", f"{LABEL}.count", f"{LABEL}.state", f"{LABEL}.hash"]),
        st.text(max_size=20)
        | st.sampled_from(["0.0-1.0", "1", "links", "none", "0.0-1.0_0.1-9.9"]),
    )
)
def test_any_labels_are_told_in_one_line(xelink: Xelink, values: dict[str, str]) -> None:
    named = {f"gpu.intel.com/{name}": value for name, value in values.items()}
    _both(xelink, "--node-json", xelink.nodes(gpu=named))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("what", ["absent", "directory", "unreadable name"])
def test_a_file_that_cannot_be_read_is_told_in_one_line(
    xelink: Xelink, option: str, what: str
) -> None:
    paths = {"absent": "no/such", "directory": str(xelink.directory), "unreadable name": "a\0b"}
    said = xelink("show", option, paths[what])
    assert said.code == 1
    _is_well_told(said)
    assert option in said.err


@pytest.mark.parametrize("command", [("show",), ("explain", "--want", "2")])
@pytest.mark.parametrize("given_to", OPTIONS)
@pytest.mark.parametrize(
    ("belongs_to", "content", "what"),
    [
        ("--metrics", BODY, "an answer of /metrics"),
        ("--features", FEATURES, "a feature file"),
        ("--node-json", NODES, "output of kubectl get node -o json"),
    ],
)
def test_a_file_of_another_kind_is_sent_to_its_option(
    xelink: Xelink,
    command: tuple[str, ...],
    given_to: str,
    belongs_to: str,
    content: bytes,
    what: str,
) -> None:
    path = xelink.file("any", content)
    said = xelink(*command, given_to, path)
    if given_to == belongs_to:
        assert "looks like" not in said.err
    else:
        assert said.code == 1
        assert said.err == (
            f"xelink {command[0]}: {given_to} {path}: this looks like {what},"
            f" which is for {belongs_to}\n"
        )


@needs_data
@pytest.mark.parametrize("path", sorted(BODIES.glob("*.prom")), ids=lambda path: path.stem)
def test_every_real_body_is_known_as_one(xelink: Xelink, path: Path) -> None:
    said = xelink("show", "--features", str(path))
    assert said.code == 1
    assert said.err.endswith(": this looks like an answer of /metrics, which is for --metrics\n")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        pytest.param(b"<html><body>login</body></html>", "a web page", id="a web page"),
        pytest.param(b"GPU 0/0  S  MDF\n", "no metrics", id="what the command line prints"),
        pytest.param(b"up 1\n", "metrics of another exporter", id="another exporter"),
        pytest.param(
            b'{"status":"success","data":{"resultType":"vector"}}',
            "an answer of Prometheus's query API",
            id="Prometheus' API",
        ),
        pytest.param(b"", "an empty answer", id="nothing"),
    ],
)
def test_what_is_no_body_is_called_what_it_is(xelink: Xelink, content: bytes, what: str) -> None:
    said = xelink("show", "--metrics", xelink.file("given", content))
    assert said.code == 4
    assert f"unknown: not-xpu-manager: {what}" in said.out
    assert "answers here" not in said.out
    assert "--node-json" not in said.out + said.err


@needs_data
@pytest.mark.parametrize("path", sorted((DATA / "field").glob("*not_*")), ids=lambda p: p.name)
def test_what_was_no_body_in_the_field_is_called_what_it_is(xelink: Xelink, path: Path) -> None:
    said = xelink("show", "--metrics", str(path))
    assert said.code == 4
    assert "unknown: not-xpu-manager: " in said.out


def test_a_page_with_labels_in_it_is_no_feature_file(xelink: Xelink) -> None:
    page = b"# Labels of a node\n\nOne line for each link:\n\n" + FEATURES.replace(b"# +", b"+")
    prose = b"".join(b"This is line %d of what they mean.\n" % line for line in range(90))
    for command in (("show",), ("explain", "--want", "2")):
        said = xelink(*command, "--features", xelink.file("README.md", page + prose))
        assert (said.code, said.out) == (1, "")
        assert said.err.endswith(
            ": this is no feature file: most of its lines have no label name, the first is"
            " 'One line for each link:'\n"
        )
    # One line that NFD rejects among many keeps no label back, as it keeps none back there.
    assert xelink("show", "--features", xelink.file("one", FEATURES + b"one line\n")).code == 0


@pytest.mark.parametrize("option", ["metrics", "features"])
@pytest.mark.parametrize("order", ["le", "be"])
def test_utf_16_is_called_what_it_is(xelink: Xelink, option: str, order: str) -> None:
    text = "\ufeff# HELP xpum_power_watts x\nxpum_power_watts 1\n"
    path = xelink.file("given", text.encode(f"utf-16-{order}"))
    said = xelink("show", f"--{option}", path)
    assert said.code == 1
    assert "this is UTF-16 text, as PowerShell's > writes it: save it as UTF-8" in said.err


@needs_data
def test_utf_16_of_the_field_is_called_what_it_is(xelink: Xelink) -> None:
    said = xelink("show", "--metrics", str(DATA / "field" / "utf16le.prom"))
    assert said.code == 1
    assert "this is UTF-16 text" in said.err


@pytest.mark.parametrize("option", ["metrics", "features", "node-json"])
@pytest.mark.parametrize("text", ["{ ", '{"kind" ', "# HELP ", "a/xe-links\n", "}\n", "\n\n"])
def test_the_kind_of_a_file_is_told_in_time_by_its_length(
    xelink: Xelink, option: str, text: str
) -> None:
    path = xelink.file("given", text * (MANY // len(text)))
    with bounded():
        assert xelink("show", f"--{option}", path).code in {1, 4}


def test_deeply_nested_json_is_no_crash(xelink: Xelink) -> None:
    said = xelink("show", "--node-json", xelink.file("deep.json", "[" * 100_000))
    assert said.code == 1
    _is_well_told(said)


def test_labels_that_contradict_each_other_are_unknown(xelink: Xelink) -> None:
    found = labels(topology(Blueprint(gpus=4).build()))
    for broken in (
        {**found, "gpu.intel.com/xe-links.count": "3"},
        {**found, "gpu.intel.com/xe-links2": "Z_9.9-9.8"},
        {name: value for name, value in found.items() if not name.endswith("xe-links")},
    ):
        said = xelink("show", "--node-json", xelink.nodes(gpu=broken))
        assert said.code == 4
        assert "unknown: " in said.out


def test_an_expired_file_is_unknown(xelink: Xelink) -> None:
    content = b"# +expiry-time=2020-01-01T00:00:00Z\n" + FEATURES
    said = xelink("show", "--features", xelink.file("old.txt", content))
    assert said.code == 4
    assert "expired at 2020-01-01" in said.out


def test_labels_of_another_namespace_are_found_there(xelink: Xelink) -> None:
    path = xelink.file("ours.txt", FEATURES.replace(b"gpu.intel.com/", b"example.com/"))
    assert xelink("show", "--features", path).code == 4
    assert xelink("show", "--features", path, "--label-namespace", "example.com").code == 0
    said = xelink("show", "--features", path, "--label-namespace", "No Such")
    assert said.code == 2
    _is_well_told(said)


# A live XPU Manager


def _live(change: Callable[[SimulatedNode], SimulatedNode] = lambda node: node) -> Simulator:
    return Simulator(change(Blueprint(gpus=4).build()))


def test_a_live_xpu_manager_is_shown_and_explained(xelink: Xelink) -> None:
    with _live() as xpum:
        for url in (xpum.base_url, f"{xpum.base_url}/", xpum.url):
            said = xelink("show", "--url", url)
            assert said.code == 0
            assert said.out.startswith(f"{xpum.url}: 4 GPUs, 12 links, all pairs linked")
        assert xelink("explain", "--want", "2", "--url", xpum.url).code == 0


@pytest.mark.parametrize(
    ("misbehaviour", "reason"),
    [
        ("daemon-down", "http-status: 500"),
        ("reset", "reset: "),
        ("empty", "not-xpu-manager: "),
        ("hang", "timeout: no whole answer within 0.3 s"),
    ],
)
def test_an_xpu_manager_that_fails_is_unknown_with_the_reason(
    xelink: Xelink, misbehaviour: str, reason: str
) -> None:
    with _live() as xpum:
        xpum.misbehave(misbehaviour)
        timeout = "0.3" if misbehaviour == "hang" else "20"
        said = xelink("show", "--url", xpum.url, "--timeout", timeout)
        assert said.code == 4
        assert f"unknown: {reason}" in said.out
        assert xelink("explain", "--want", "2", "--url", xpum.url, "--timeout", timeout).code == 4


def test_advice_names_the_options_of_this_tool(xelink: Xelink) -> None:
    secret = token_hex()
    with Simulator(Blueprint(gpus=2).build(), Serving(password=secret)) as xpum:
        said = xelink("show", "--url", xpum.url)
        assert said.code == 4
        assert said.out.rstrip().endswith("give --username and --password-file")
        password = xelink.file("password", f"{secret}\n")
        login = ("--username", "xpumadmin", "--password-file", password)
        assert xelink("show", "--url", xpum.url, *login).code == 0
        port = xpum.port
    said = xelink("show", "--url", f"http://127.0.0.1:{port}")
    assert said.out.rstrip().endswith("or on another port (--url)")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Make a CA, and a certificate with its key for 127.0.0.1."""
    ca = trustme.CA()
    leaf = ca.issue_cert("127.0.0.1")
    paths = tmp_path / "ca.crt", tmp_path / "tls.crt", tmp_path / "tls.key"
    ca.cert_pem.write_to_path(str(paths[0]))
    leaf.cert_chain_pems[0].write_to_path(str(paths[1]))
    leaf.private_key_pem.write_to_path(str(paths[2]))
    return paths


def test_https_is_verified(xelink: Xelink, certificate: tuple[Path, Path, Path]) -> None:
    ca, cert, key = certificate
    other = xelink.file("other.crt", trustme.CA().cert_pem.bytes())
    with Simulator(Blueprint(gpus=2).build(), Serving(cert=cert, key=key)) as xpum:
        assert xelink("show", "--url", xpum.url, "--cert", str(ca)).code == 0
        said = xelink("show", "--url", xpum.url, "--cert", other)
        assert said.code == 4
        assert "the file of --cert does not contain its CA" in said.out
        said = xelink("show", "--url", xpum.url, "--cert", "no/such")
        assert said.code == 4
        assert "--cert no/such: No such file" in said.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--url", "ftp://127.0.0.1"),
        ("--url", "http://"),
        ("--url", "127.0.0.1:29999"),
        ("--url", "http://127.0.0.1:port"),
        ("--url", "http://[::1"),
        ("--url", "http://127.0.0.1:70000"),
        ("--url", "http://127.0.0.1/other"),
        ("--url", "http://user:password@127.0.0.1"),
        ("--url", "https://127.0.0.1"),
        ("--url", "http://127.0.0.1", "--cert", "ca.crt"),
        ("--url", "https://127.0.0.1", "--cert", "ca.crt", "--client-key", "key"),
        ("--url", "http://127.0.0.1", "--username", "me"),
        ("--url", "http://127.0.0.1", "--timeout", "0"),
        ("--url", "http://127.0.0.1", "--timeout", "soon"),
        ("--url", "http://127.0.0.1", "--timeout", "inf"),
        ("--url", "http://127.0.0.1", "--timeout", "nan"),
        ("--url", "http://127.0.0.1", "--timeout", "86401"),
        ("--url", "http://127.0.0.1", "--lane-count", "-1"),
    ],
    ids=" ".join,
)
def test_wrong_addresses_and_options_are_wrong_calls(
    xelink: Xelink, arguments: tuple[str, ...]
) -> None:
    said = xelink("show", *arguments)
    assert said.code == 2
    assert said.out == ""
    assert "password@" not in said.err


def test_ctrl_c_ends_a_scrape_that_hangs() -> None:
    with _live() as xpum:
        xpum.misbehave("hang")
        with running("xelink", "show", "--url", xpum.url) as process:
            xpum.wait_for_request(1)
            assert process.stop(signal.SIGINT) == 130
            assert process.lines == []


@pytest.mark.parametrize(
    ("option", "first", "most"),
    [("--metrics", b"# HELP", 64 << 20), ("--node-json", b"{", 256 << 20)],
)
def test_what_has_no_end_is_told_in_one_line(
    xelink: Xelink, tmp_path: Path, option: str, first: bytes, most: int
) -> None:
    endless = tmp_path / "endless"
    with endless.open("wb") as file:
        file.write(first + b"\n")
        file.truncate(1 << 40)
    said = xelink("show", option, str(endless))
    assert said.code == 1
    assert said.err == f"xelink show: {option} {endless}: more than {most} bytes\n"


def test_a_pipe_is_read_as_a_file_is(xelink: Xelink) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, FEATURES)
        os.close(writer)
        said = xelink("show", "--features", f"/dev/fd/{reader}")
    finally:
        os.close(reader)
    assert said.code == 0


def test_without_a_source_the_file_of_this_node_is_read(xelink: Xelink, tmp_path: Path) -> None:
    file = tmp_path / DEFAULT_PATH.relative_to("/")
    file.parent.mkdir(parents=True)
    file.write_bytes(FEATURES)
    here = f"--prefix={tmp_path}"
    named = xelink("show", f"--features={file}")
    assert named.code == 0
    assert xelink("show", here) == named
    assert xelink("explain", "--want=2", here) == xelink(
        "explain", "--want=2", f"--features={file}"
    )


def test_without_a_source_and_a_file_the_node_s_xpu_manager_is_asked(
    xelink: Xelink, tmp_path: Path
) -> None:
    said = xelink("show", f"--prefix={tmp_path}", "--output=json")
    (node,) = json.loads(said.out)["nodes"]
    assert node["source"] == "http://127.0.0.1:29999/metrics"
    if said.code == 4:  # nobody is there, as on most machines
        assert node["reason"].startswith(f"there is no {tmp_path}{DEFAULT_PATH}, and ")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--lane-count=4",), "--lane-count has no meaning with this node: give a source"),
        (("--node=a",), "--node has no meaning with this node: give a source"),
        (("--url=http://127.0.0.1:1", "--prefix=/"), "--prefix has no meaning with --url"),
    ],
    ids=["lanes", "node", "prefix"],
)
def test_an_option_of_another_source_is_refused(
    xelink: Xelink, arguments: tuple[str, ...], why: str
) -> None:
    said = xelink("show", *arguments)
    assert (said.code, said.out, said.err) == (2, "", f"xelink show: {why}\n")
