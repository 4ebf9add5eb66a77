"""One long outage, told with processes: HTTPS, a rotating certificate, ten kinds of failure."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from tests.processes import running
from xelink.simulators.xpu_manager import Blueprint, Serving, Simulator
from xelink.topology import nfd_format

NS = "gpu.intel.com"

# Each reason differs from the one before: only a change is logged, and that is what we wait for.
FAILURES = [
    ("refuse", "refused"),
    ("reset", "reset"),
    ("hang", "timeout"),
    ("daemon-down", "http-status"),
    ("cut", "protocol"),
    ("empty", "not-xpu-manager"),
    ("drip-body", "timeout"),
    ("endless", "too-large"),
    ("redirect", "http-status"),
    ("garbage", "not-xpu-manager"),
    ("close", "reset"),
    ("utf16", "not-xpu-manager"),
]


def issue(authority: trustme.CA, cert: Path, key: Path) -> None:
    """Write a new serving certificate, as cert-manager rotates it."""
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(key)
    leaf.cert_chain_pems[0].write_to_path(cert)


def test_labels_outlive_every_kind_of_failure_and_go_when_the_outage_lasts(tmp_path: Path) -> None:
    authority = trustme.CA()
    trust, cert, key = (tmp_path / name for name in ("ca.crt", "tls.crt", "tls.key"))
    authority.cert_pem.write_to_path(trust)
    issue(authority, cert, key)
    features_d = tmp_path / "features.d"
    features_d.mkdir()
    labels = features_d / "xpum-sidecar-labels.txt"

    def published(at: datetime | None = None) -> dict[str, str]:
        file = nfd_format.parse(labels.read_bytes(), at or datetime.now(UTC))
        return dict(file.labels)

    with (
        Simulator(
            Blueprint(gpus=4, tiles=2).build(), Serving(cert=cert, key=key, keep_alive=0.5)
        ) as xpum,
        running(
            "sidecar",
            f"-xpum-port={xpum.port}",
            f"-cert={trust}",
            f"-tmp-dir-prefix={features_d}",
            f"-dst-file-path={labels}",
            "-startup-delay=0",
            "-interval=1",
            "-timeout=1",
            "-max-body=3000000",
            "-expiry=60",
            "-listen=",
        ) as process,
    ):
        process.wait_for("labels published")
        first = published()
        assert first[f"{NS}/xe-links.count"] == "12"
        # In a row, without a good scrape in between: if any of them counted as a loss, two would
        # be enough to take the labels away.
        for number, (failure, reason) in enumerate(FAILURES):
            if number % 3 == 0:
                issue(authority, cert, key)
            xpum.recover()
            xpum.misbehave(failure)
            process.wait_for(f"reason={reason}")  # a machine that takes its time, times out before
            assert published() == first
        xpum.recover()
        assert "result=links" in process.wait_for("scrape result changed")
        assert published() == first
        other = trustme.CA()
        issue(other, cert, key)
        process.wait_for("reason=tls")
        assert published() == first
        other.cert_pem.write_to_path(trust)
        process.wait_for("scrape result changed")
        xpum.misbehave("refuse")
        process.wait_for("no usable answer")
        expiry = nfd_format.parse(labels.read_bytes(), datetime.now(UTC)).expiry
        assert expiry
        assert process.stop() == 0
    assert published(expiry) == first
    assert published(expiry + timedelta(seconds=1)) == {}
