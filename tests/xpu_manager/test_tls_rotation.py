"""Certificates and their CA rotate while the sidecar runs: nothing is restarted."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from tests.xpu_manager.test_scrape import NODE, outcome, refusal, scraping, text_of
from tests.xpu_manager.test_tls_servers import CA, DAY, HERE, NOW, Authority, https, written
from xelink.simulators.xpu_manager import Serving, Simulator
from xelink.xpu_manager.reasons import ScrapeReason
from xelink.xpu_manager.scrape import Scraper

OLD, NEW = Authority("CA of 2025"), Authority("CA of 2026")
SERVER, TRUST, BOTH = "server", "trust", "both"


class Site:
    """A simulator and what its operator keeps in files."""

    def __init__(self, folder: Path) -> None:
        self.server = written(folder, "tls.pem", OLD.issue(HERE))
        self.trust = written(folder, "ca.crt", OLD.pem)

    def rotate(self, what: str) -> None:
        if what == SERVER:
            replaced(self.server, NEW.issue(HERE))
        else:
            replaced(self.trust, NEW.pem if what == TRUST else OLD.pem + NEW.pem)

    def simulator(self) -> Simulator:
        return Simulator(NODE, Serving(cert=self.server, key=self.server))


def replaced(file: Path, content: bytes) -> None:
    written(file.parent, "next", content).rename(file)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize(
    ("steps", "outcomes"),
    [
        pytest.param([SERVER, TRUST], ["tls", "links"], id="server first"),
        pytest.param([TRUST, SERVER], ["tls", "links"], id="trust first"),
        pytest.param([BOTH, SERVER, TRUST], ["links"] * 3, id="both are trusted for a while"),
        pytest.param([BOTH, TRUST, SERVER], ["links", "tls", "links"], id="the old one goes early"),
    ],
)
def test_a_ca_rotates_in_any_order(site: Site, steps: list[str], outcomes: list[str]) -> None:
    with site.simulator() as xpum, scraping(https(xpum.port, site.trust)) as scraper:
        assert outcome(scraper) == "links"
        for step, expected in zip(steps, outcomes, strict=True):
            site.rotate(step)
            drop_connections(xpum)
            assert outcome(scraper) == expected
            assert scraper.tls_error is None


def drop_connections(xpum: Simulator) -> None:
    xpum.misbehave("refuse")
    xpum.recover()


def test_a_new_trust_drops_the_connection_that_the_old_one_allowed(site: Site) -> None:
    with site.simulator() as xpum, scraping(https(xpum.port, site.trust)) as scraper:
        assert outcome(scraper) == "links"
        site.rotate(TRUST)
        assert outcome(scraper) == "tls"
        assert xpum.connections == 2


def test_a_kept_connection_outlives_the_servers_certificate(tmp_path: Path) -> None:
    ca = trustme.CA()

    def issue(life: timedelta) -> bytes:
        leaf = ca.issue_cert("127.0.0.1", not_before=NOW - DAY, not_after=NOW + life)
        return leaf.private_key_and_cert_chain_pem.bytes()

    cert = written(tmp_path, "tls.pem", issue(DAY))
    trust = written(tmp_path, "ca.crt", ca.cert_pem.bytes())
    with (
        Simulator(NODE, Serving(cert=cert, key=cert)) as xpum,
        scraping(https(xpum.port, trust)) as scraper,
    ):
        assert outcome(scraper) == "links"
        replaced(cert, issue(9 * DAY))
        assert outcome(scraper) == "links"
        assert (xpum.connections, scraper.certificate_expiry) == (1, (NOW + DAY).timestamp())
        drop_connections(xpum)
        assert outcome(scraper) == "links"
        assert (xpum.connections, scraper.certificate_expiry) == (2, (NOW + 9 * DAY).timestamp())
        xpum.misbehave("refuse")
        assert outcome(scraper) == "refused"
        assert scraper.certificate_expiry == (NOW + 9 * DAY).timestamp()


def halved(trust: Path) -> None:
    trust.write_bytes(NEW.pem[:100])


@pytest.mark.parametrize("spoil", [halved, Path.unlink])
def test_a_spoiled_trust_costs_no_scrape_and_is_told_until_it_is_mended(
    site: Site, spoil: Callable[[Path], None]
) -> None:
    with site.simulator() as xpum, scraping(https(xpum.port, site.trust)) as scraper:
        assert outcome(scraper) == "links"
        assert scraper.tls_error is None
        spoil(site.trust)
        for _ in range(2):
            assert outcome(scraper) == "links"
            assert f"-cert {site.trust}: " in told(scraper)
        assert xpum.connections == 1
        drop_connections(xpum)
        assert outcome(scraper) == "links"
        site.rotate(BOTH)
        assert outcome(scraper) == "links"
        assert scraper.tls_error is None


def told(scraper: Scraper) -> str:
    return text_of(scraper.tls_error) if scraper.tls_error else "nothing"


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_a_first_start_without_trust_asks_nothing_and_heals(
    site: Site, content: bytes | None
) -> None:
    site.trust.unlink()
    if content is not None:
        site.trust.write_bytes(content)
    with site.simulator() as xpum, scraping(https(xpum.port, site.trust)) as scraper:
        error = refusal(scraper)
        assert error.reason is ScrapeReason.TLS
        assert text_of(error).startswith(f"-cert {site.trust}: ")
        assert scraper.certificate_expiry is None
        assert xpum.connections == 0
        replaced(site.trust, OLD.pem)
        assert outcome(scraper) == "links"


def test_the_expiry_is_that_of_the_leaf_not_of_its_ca(tmp_path: Path) -> None:
    served = CA.issue(HERE)
    cert, trust = written(tmp_path, "tls.pem", served + CA.pem), written(tmp_path, "ca", CA.pem)
    leaf = x509.load_pem_x509_certificate(served[served.index(b"-----BEGIN CERT") :])
    with (
        Simulator(NODE, Serving(cert=cert, key=cert)) as xpum,
        scraping(https(xpum.port, trust)) as scraper,
    ):
        assert scraper.certificate_expiry is None
        assert outcome(scraper) == "links"
        assert scraper.certificate_expiry == leaf.not_valid_after_utc.timestamp()
