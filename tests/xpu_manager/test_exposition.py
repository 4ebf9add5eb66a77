from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xpu_manager.bodies import body, both, read_body, row, self_rows
from xelink.simulators.xpu_manager import Blueprint, render
from xelink.topology.model import Gpu, PortState, Tile
from xelink.xpu_manager.exposition import ExpositionReader, read
from xelink.xpu_manager.line_filter import LineFilter, TooManyRowsError
from xelink.xpu_manager.rows import Matrix, TileConnection, TopologyRow

GPU = Gpu(0, "0000:10:00.0", "card1", "00-0", 0)
WANTED = TopologyRow(Tile(0, 0), Tile(1, 0), TileConnection.XE_LINK, 4, True, GPU)  # noqa: FBT003 - a tuple's field
PLAIN = row("0.0", "1.0")
SIMULATED = render(Blueprint(gpus=3, tiles=2).build())


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(PLAIN, id="as the exporter writes it"),
        pytest.param(PLAIN.replace("} 1.0", "} 1"), id="an integer"),
        pytest.param(PLAIN.replace("} 1.0", "} 1e0"), id="an exponent"),
        pytest.param(PLAIN.replace("} 1.0", "} +1.000"), id="a sign"),
        pytest.param(PLAIN.replace("} 1.0", "} 1.0 1790000000000"), id="a timestamp"),
        pytest.param(PLAIN.replace("} 1.0", "} 1 1790000000000"), id="integer and timestamp"),
        pytest.param(PLAIN.replace("} 1.0", " }\t 1.0  "), id="blanks around the value"),
        pytest.param(PLAIN.replace("} 1.0", "}1.0"), id="no blank before the value"),
        pytest.param(PLAIN.replace("} 1.0", ",} 1.0"), id="a comma at the end"),
        pytest.param(PLAIN.replace('",', '" , ').replace("=", " = "), id="blanks between labels"),
        pytest.param(PLAIN.replace("{", " { "), id="blanks around the brace"),
        pytest.param("  " + PLAIN, id="blanks before the name"),
        pytest.param(PLAIN + "\r", id="a carriage return"),
        pytest.param(PLAIN.replace('"4"', '"4.0"'), id="lanes as a float"),
        pytest.param(PLAIN.replace('"4"', '"4e0"'), id="lanes with an exponent"),
        pytest.param(PLAIN.replace("lane_count", "lan_count"), id="the old spelling"),
        pytest.param(PLAIN.replace('_id="0"', '_id="0.0"'), id="ids as floats"),
        pytest.param(PLAIN.replace('device="true"', 'device="True"'), id="true as Python says it"),
        pytest.param(
            PLAIN.replace('dev_name="GPU"', r'dev_name="a \"GPU\", {big} \\"'), id="escapes"
        ),
        pytest.param(
            PLAIN.replace('dev_name="GPU"', 'dev_name="local_device_id="'), id="a label's name"
        ),
        pytest.param(
            PLAIN.replace('dev_name="GPU"', r'dev_name="x\",local_device_id=\"7"'),
            id="a label inside a value",
        ),
        pytest.param(PLAIN.replace('dev_name="GPU"', 'dev_name="} 2.0 {"'), id="braces in a value"),
        pytest.param(
            PLAIN.replace("{dev_file", '{kube_pod="train-0",dev_file'), id="labels of a Pod"
        ),
    ],
)
def test_a_row_is_read_in_every_spelling(line: str) -> None:
    reading = read_body(body([line]))
    assert reading.rows == (WANTED,)
    assert reading.unread == 0


def test_labels_come_in_any_order() -> None:
    name, _, rest = PLAIN.partition("{")
    labels, _, value = rest.rpartition("}")
    turned = ",".join(reversed(labels.replace("0-51,104-155", "0-51").split(",")))
    assert read_body(body([f"{name}{{{turned}}}{value}"])).rows == (WANTED,)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("xpum_topology_link 1.0", id="no labels"),
        pytest.param("xpum_topology_link{", id="cut"),
        pytest.param(PLAIN[:-40], id="cut in a label"),
        pytest.param(PLAIN.removesuffix("1.0"), id="no value"),
        pytest.param(PLAIN.replace("} 1.0", "} NaN"), id="not a number"),
        pytest.param(PLAIN.replace("} 1.0", "} 1.5"), id="no whole number"),
        pytest.param(PLAIN.replace("} 1.0", "} 9"), id="a connection that does not exist"),
        pytest.param(PLAIN.replace("} 1.0", "} " + "9" * 1000), id="a thousand digits"),
        pytest.param(PLAIN.replace("} 1.0", "} one"), id="a word"),
        pytest.param(PLAIN.replace('"4"', '"many"'), id="lanes in words"),
        pytest.param(PLAIN.replace('"4"', '"-4"'), id="negative lanes"),
        pytest.param(PLAIN.replace('"4"', '"4.5"'), id="half a lane"),
        pytest.param(PLAIN.replace('lane_count="4",', ""), id="no lanes"),
        pytest.param(PLAIN.replace('local_device_id="0"', 'local_device_id=""'), id="no id"),
        pytest.param(
            PLAIN.replace('local_device_id="0"', f'local_device_id="{"1" * 99}"'), id="a huge id"
        ),
        pytest.param(PLAIN.replace('l_device_id="0"', f'l_device_id="{10**9}"'), id="a large id"),
        pytest.param(PLAIN.replace('e_device_id="1"', f'e_device_id="{10**9}"'), id="a large one"),
        pytest.param(PLAIN.replace('"4"', f'"{10**9}"'), id="more lanes than fit a label"),
        pytest.param(PLAIN.replace('remote_device_id="1",', ""), id="no remote"),
        pytest.param(PLAIN.replace("dev_file=", "dev_file"), id="no equals sign"),
        pytest.param(PLAIN.replace('="0"', '="\\x00"'), id="no digits"),
    ],
)
def test_a_row_that_does_not_parse_is_counted_and_spoils_no_other(line: str) -> None:
    reading = read_body(body([row("3.0", "4.0"), line, PLAIN]))
    assert [str(read_row.local) for read_row in reading.rows] == ["3.0", "0.0"]
    assert reading.unread == 1
    assert reading.total == 3


@pytest.mark.parametrize(
    ("change", "gpu"),
    [
        (('pci_bdf="0000:10:00.0"', 'pci_bdf=""'), None),
        (('pci_bdf="0000:10:00.0"', 'pci_bdf="../../etc"'), None),
        (('dev_file="card1"', 'dev_file=""'), Gpu(0, GPU.bdf, None, "00-0", 0)),
        (('dev_file="card1"', 'dev_file="sda"'), Gpu(0, GPU.bdf, None, "00-0", 0)),
        (('uuid="00-0"', r'uuid="a\nb"'), Gpu(0, GPU.bdf, "card1", None, 0)),
        (('_index="0"', '_index="4294967295"'), Gpu(0, GPU.bdf, "card1", "00-0", None)),
        (('_index="0"', '_index="-1"'), Gpu(0, GPU.bdf, "card1", "00-0", None)),
        (('pci_bdf="0000:10:00.0"', 'pci_bdf="000A:BC:0D.0"'), replace(GPU, bdf="000a:bc:0d.0")),
        (('_index="0"', '_index=""'), Gpu(0, GPU.bdf, "card1", "00-0", None)),
    ],
)
def test_a_gpu_without_a_usable_fact_has_none(change: tuple[str, str], gpu: Gpu | None) -> None:
    assert read_body(body([PLAIN.replace(*change)])).rows[0].gpu == gpu


@given(st.lists(st.integers(0, len(SIMULATED)), max_size=30))
def test_chunk_boundaries_change_nothing(cuts: list[int]) -> None:
    lines = LineFilter()
    edges = [0, *sorted(cuts), len(SIMULATED)]
    for start, end in pairwise(edges):
        lines.feed(SIMULATED[start:end])
    assert ExpositionReader().read(lines) == read_body(SIMULATED)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_tiny_chunks_change_nothing(size: int) -> None:
    content = body([*self_rows("0.0", "1.0"), *both("0.0", "1.0")])
    assert read_body(content, size) == read_body(content)


@given(st.binary(max_size=400))
def test_any_bytes_are_read(content: bytes) -> None:
    read_body(content, 50)
    read_body(b"xpum_topology_link{" + content)
    read(b"xpum_topology_link" + content, b"xpum_xelink_port_status" + content)


def test_comments_and_values_that_mention_a_row_are_none() -> None:
    reading = read_body(
        b"# HELP xpum_topology_link x\n# TYPE xpum_topology_link gauge\n"
        b'other{a="xpum_topology_link{"} 1.0\nxpum_topology_link_created{a="b"} 1.0\n'
    )
    assert reading.total == 0


def test_the_state_of_the_ports_is_the_worst_that_is_told() -> None:
    def ports(bdf: str, value: object) -> str:
        return f'xpum_xelink_port_status{{device_id="0",pci_bdf="{bdf}"}} {value}'

    reading = read_body(
        "\n".join(
            [
                ports("0000:29:00.0", "0.0"),
                ports("0000:3a:00.0", 2.0),
                ports("0000:3A:00.0", 1),
                ports("0000:4d:00.0", "-1.0"),
                ports("0000:5c:00.0", "x"),
            ]
        ).encode()
    )
    assert reading.ports == {"0000:29:00.0": PortState.HEALTHY, "0000:3a:00.0": PortState.FAILED}
    assert reading.unread_ports == 1


def test_an_unchanged_topology_is_the_same_reading_and_one_that_returns_is_read_again() -> None:
    reader = ExpositionReader()

    def scrape(content: bytes) -> object:
        lines = LineFilter()
        lines.feed(content)
        return reader.read(lines)

    first = scrape(SIMULATED)
    assert scrape(SIMULATED + b"\nother 1.0") is first
    gone = scrape(b"xpum_power_watts 1.0")
    assert gone == read_body(b"xpum_power_watts 1.0")
    assert scrape(SIMULATED) == first


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"", b"hw_status 1\n", id="XPU Manager 2 came"),
        pytest.param(b"hw_status 1\n", b"", id="XPU Manager 2 went"),
        pytest.param(b"", b"x" * 100_000 + b"\n", id="an overlong line came"),
        pytest.param(b"x" * 100_000 + b"\n", b"", id="an overlong line went"),
    ],
)
def test_equal_rows_are_no_equal_reading_where_the_rest_tells_more(
    before: bytes, after: bytes
) -> None:
    for rows in (b"", body(self_rows("0.0")) + b"\n"):
        reader = ExpositionReader()
        for content in (before + rows, after + rows):
            lines = reader.line_filter()
            lines.feed(content)
            assert reader.read(lines) == read_body(content)


# Labels that look like those that differ among rows; without one, the next is misspelt
NASTY = [
    'dev_name="GPU"',
    'dev_name="x,lane_count="',
    'dev_name="x",lane_count="12"',
    'dev_name="x",lane_count ="12"',
    'dev_name="x",lan_count="12"',
    'dev_name="remote_device_id="',
    'dev_name="x",remote_device_id="3"',
    'dev_name="x",remote_subdevice_id ="3"',
    'dev_name="x,remote_device_id="',
    'dev_name="x,remote_subdevice_id="',
    'dev_name="x,src="',
    "",
    r'dev_name="a \" b"',
    'dev_name="} 1.0"',
    'dev_name="x',
]


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize(
    "place",
    ["dev_name", "lane_count", "local_numa_index", "remote_device_id", "src", "uuid", "vendor"],
)
def test_a_row_means_the_same_alone_and_among_others(nasty: str, place: str) -> None:
    lines = [
        row(local, remote)
        .replace('lane_count="4"', f'lane_count="{lanes}"')
        .replace(f",{place}=", f",{nasty},{place}=" if nasty else f",my_{place}=")
        .removesuffix("1.0")
        .encode()
        + value
        for local, remote, lanes, value in product(
            ["0.0", "0.1"],
            ["1.0", "2.0", "2.1"],
            ["4", "0", "04", "8.0", "", "x"],
            [b"1.0", b"0.0", b"1", b"2.0", b"1.0 1.0", b"1.0 0.0", b"7.0", b""],
        )
    ]
    alone = [Matrix().read(line) for line in lines]
    rows, unread = Matrix().read(b"\n".join(lines))
    assert rows == [read_row for read_rows, _ in alone for read_row in read_rows]
    assert unread == sum(count for _, count in alone)


def test_states_of_ports_are_found_wherever_they_stand() -> None:
    """They are looked for where the last body had them; from where they were, they may move."""
    reader = ExpositionReader()

    def scrape(*parts: bytes) -> dict[str, PortState]:
        lines = reader.line_filter()
        for part in parts:
            lines.feed(part)
        return dict(reader.read(lines).ports)

    rows = body([*self_rows("0.0", "1.0"), *both("0.0", "1.0")]) + b"\n"
    healthy = b'xpum_xelink_port_status{pci_bdf="0000:10:00.0"} 0.0\n'
    failed = b'xpum_xelink_port_status{pci_bdf="0000:10:00.0"} 2.0\n'
    for states in (
        scrape(rows, healthy),
        scrape(rows, healthy, b"other 1.0\n"),
        scrape(healthy, rows),  # not looked for there: what was known stands for one scrape
    ):
        assert states == {"0000:10:00.0": PortState.HEALTHY}
    assert scrape(failed, rows) == {"0000:10:00.0": PortState.FAILED}
    assert scrape(healthy, rows) == {"0000:10:00.0": PortState.HEALTHY}
    assert scrape(rows, failed) == {"0000:10:00.0": PortState.FAILED}
    assert scrape(rows, failed) == {"0000:10:00.0": PortState.FAILED}
    assert scrape(rows) == {"0000:10:00.0": PortState.FAILED}
    assert scrape(rows) == {}


def test_more_rows_than_any_node_has_end_the_reading() -> None:
    lines = LineFilter(limit=10_000)
    with pytest.raises(TooManyRowsError):
        lines.feed((PLAIN.encode() + b"\n") * 100)


def test_a_line_without_end_takes_no_memory() -> None:
    lines = LineFilter()
    for _ in range(100):
        lines.feed(b"x" * 100_000)
    lines.feed(b"\n" + PLAIN.encode())
    reading = ExpositionReader().read(lines)
    assert reading.rows == (WANTED,)
    assert reading.unread == 1


@pytest.mark.parametrize(
    ("content", "foreign"),
    [
        (b"# HELP hw_status x\nhw_status 1\n", True),
        (b'hw_temperature{id="a"} 1\n', True),
        (b"# HELP xpum_power_watts x\nxpum_power_watts 1\nhw_status 1\n", False),
        (b"#nodata: due to unexpected failure", False),
        (b"", False),
    ],
)
def test_xpu_manager_2_is_told_by_its_names(content: bytes, foreign: bool) -> None:  # noqa: FBT001 - a column
    assert read_body(content).foreign is foreign
