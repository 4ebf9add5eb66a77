"""Bytes like those of a corpus, and unlike them, for hypothesis."""

from collections.abc import Sequence

from hypothesis import strategies as st

# What the readers here look for; a mutation by bytes alone would hardly ever write one of them.
_WORDS = (
    rb"""xpum_topology_link{ xpum_xelink_port_status{ hw_ lane_count=" lan_count=" local_device_id="
    remote_device_id=" pci_bdf=" ", "} "}1.0 \ = - _0.0-1.0 Z gpu.intel.com/xe-links xe-links2=Z
    xe-links.id-map= +expiry-time= +no-label +no-feature 2026-06-01T00:00:01Z [[[[ NaN 1e999"""
).split()
_BYTES = (
    b"\n",
    b"\r\n",
    b" ",
    b"# ",
    b"\0",
    b"\xff",
    b"\xe2\x80\xa8",
    b"9" * 400,
    b"\n\x08card1-0",
)


def mutated(corpus: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Give cases with some pieces cut out, put in, doubled, or taken from another case."""

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(corpus))
        for _ in range(draw(st.integers(0, 4))):
            at, to = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
            piece = draw(
                st.sampled_from([b"", data[at:to], *_WORDS, *_BYTES])
                | st.binary(max_size=16)
                | st.sampled_from(corpus)
            )
            kept = draw(st.sampled_from([at, to]))
            data = data[:kept] + piece + data[to:]
        return data

    return build()
