"""Arbitrary topologies, for properties."""

from hypothesis import strategies as st

from xelink.topology.model import Gpu, Link, PortState, Tile, Topology

tiles = st.builds(Tile, st.integers(0, 40), st.integers(0, 3))
lanes = st.integers(0, 64)
links = st.builds(Link.between, tiles, tiles, lanes, lanes)
link_sets = st.lists(links, max_size=60, unique_by=lambda link: link.ends)


@st.composite
def gpus(draw: st.DrawFn, most: int = 12) -> tuple[Gpu, ...]:
    ids = draw(st.lists(st.integers(0, 40), unique=True, max_size=most))
    buses = draw(st.lists(st.integers(0, 255), unique=True, min_size=len(ids), max_size=len(ids)))
    return tuple(
        Gpu(
            id=device,
            bdf=f"0000:{bus:02x}:00.0",
            card=draw(st.none() | st.integers(0, 99).map(lambda number: f"card{number}")),
            uuid=draw(st.none() | st.uuids().map(str)),
            numa=draw(st.none() | st.integers(0, 7)),
            ports=draw(st.none() | st.sampled_from(PortState)),
        )
        for device, bus in zip(ids, buses, strict=True)
    )


topologies = st.builds(
    Topology, link_sets.map(tuple), gpus(), st.lists(tiles, max_size=8).map(tuple)
)
