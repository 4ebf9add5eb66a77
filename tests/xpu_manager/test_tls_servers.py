"""Which servers are trusted, and which are refused with a cause and an advice."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.patience import PATIENCE
from tests.xpu_manager.test_scrape import NODE, outcome, refusal, scraping, text_of
from xelink.simulators.xpu_manager import Serving, Simulator
from xelink.xpu_manager.reasons import ScrapeReason
from xelink.xpu_manager.scrape import ScrapeTarget
from xelink.xpu_manager.tls import TlsFiles

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


IS_CA = x509.BasicConstraints(ca=True, path_length=None)


class Authority:
    """Makes certificates as plain as they come: no extension that was not asked for."""

    def __init__(self, name: str = "CA", *extensions: x509.ExtensionType) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
        self.pem = self._sign(self.name, self.key.public_key(), extensions or (IS_CA,))

    def issue(self, *extensions: x509.ExtensionType, name: x509.Name | None = None) -> bytes:
        """Give the PEM of a new key and its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([]) if name is None else name
        return _pem(key) + self._sign(subject, key.public_key(), extensions)

    def of_itself(self) -> bytes:
        return _pem(self.key) + self.pem

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        extensions: Iterable[x509.ExtensionType],
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + DAY)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        signed = builder.sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


def self_signed(*extensions: x509.ExtensionType) -> bytes:
    """As cert-manager makes it: no subject, its own issuer, one address."""
    return Authority("", *extensions).of_itself()


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def only_certificate(pem: bytes) -> bytes:
    return pem[pem.index(b"-----BEGIN CERTIFICATE-----") :]


HERE = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
ELSEWHERE = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.2"))])
BY_NAME = x509.SubjectAlternativeName([x509.DNSName("localhost")])
CLIENTS_ONLY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
CA = Authority()
NAMESAKE = Authority()
NO_CA = Authority("leaf", x509.BasicConstraints(ca=False, path_length=None))
LOCALHOST = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])


def trustme_pair(
    identity: str = "127.0.0.1", begin: timedelta = -DAY, end: timedelta = DAY
) -> tuple[bytes, bytes]:
    ca = trustme.CA()
    leaf = ca.issue_cert(identity, not_before=NOW + begin, not_after=NOW + end)
    return leaf.private_key_and_cert_chain_pem.bytes(), ca.cert_pem.bytes()


def renewed_ca() -> tuple[bytes, bytes]:
    old, new = (trustme.CA(organization_unit_name="one and the same") for _ in range(2))
    leaf = new.issue_cert("127.0.0.1", not_after=NOW + DAY)
    return leaf.private_key_and_cert_chain_pem.bytes(), old.cert_pem.bytes() + new.cert_pem.bytes()


def own_leaf(served: bytes) -> tuple[bytes, bytes]:
    return served, only_certificate(served)


ACCEPTED = {
    "its CA": trustme_pair(),
    "a leaf of a CA, without the CA": own_leaf(trustme_pair()[0]),
    "its own self-signed certificate": own_leaf(self_signed(HERE)),
    "a plain leaf without keyUsage": (CA.issue(HERE), CA.pem),
    "a plain leaf of its own": own_leaf(CA.issue(HERE)),
    "its CA among others": (CA.issue(HERE), Authority("other").pem + CA.pem),
    "its CA after another of the same name": renewed_ca(),
}

REFUSED = {
    "another CA": (
        (trustme_pair()[0], trustme_pair()[1]),
        r"unable to get local issuer certificate; .* -cert does not contain its CA",
    ),
    "another CA of the same name": (
        (CA.issue(HERE), NAMESAKE.pem),
        r"certificate signature failure; .* -cert does not contain its CA",
    ),
    "another leaf of the same CA": (
        (CA.issue(HERE), only_certificate(CA.issue(HERE))),
        r"unable to .*issuer certificate; .* -cert does not contain its CA",
    ),
    "self-signed, but another": (
        (self_signed(HERE), only_certificate(self_signed(HERE))),
        r"self.signed certificate; the file of -cert does not contain it",
    ),
    "another address": (
        (CA.issue(ELSEWHERE), CA.pem),
        r"IP address mismatch, .* '127.0.0.1'; it needs subjectAltName=IP:127.0.0.1",
    ),
    "a name for the address": (
        (CA.issue(BY_NAME), CA.pem),
        r"IP address mismatch, .*; it needs subjectAltName=IP:127.0.0.1",
    ),
    "no alternative name, as XPU Manager's own tool makes it": (
        own_leaf(CA.issue(name=LOCALHOST)),
        r"IP address mismatch, .*; it needs subjectAltName=IP:127.0.0.1",
    ),
    "expired": (trustme_pair(begin=-3 * DAY, end=-DAY), "certificate has expired; renew it"),
    "expired, and its own trust": (
        own_leaf(trustme_pair(begin=-3 * DAY, end=-DAY)[0]),
        "certificate has expired; renew it",
    ),
    "not yet valid": (
        trustme_pair(begin=DAY, end=3 * DAY),
        "certificate is not yet valid; wait, or set the clock",
    ),
    "a leaf of what is no CA": (
        (NO_CA.issue(HERE), NO_CA.pem),
        "invalid CA certificate; the CA of -cert needs basicConstraints CA:TRUE",
    ),
    "for clients only": (
        (CA.issue(HERE, CLIENTS_ONLY), CA.pem),
        "purpose; its extendedKeyUsage must allow serverAuth",
    ),
}


def written(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def https(
    port: int, cert: Path, client: Path | None = None, timeout: float = PATIENCE
) -> ScrapeTarget:
    return ScrapeTarget(port, tls=TlsFiles(cert, client), timeout=timeout)


@pytest.mark.parametrize("name", ACCEPTED)
def test_trust_is_given_to(tmp_path: Path, name: str) -> None:
    served, trusted = ACCEPTED[name]
    cert, trust = written(tmp_path, "tls.pem", served), written(tmp_path, "ca.crt", trusted)
    with (
        Simulator(NODE, Serving(cert=cert, key=cert)) as xpum,
        scraping(https(xpum.port, trust)) as scraper,
    ):
        assert outcome(scraper) == "links"
        expiry = x509.load_pem_x509_certificate(only_certificate(served)).not_valid_after_utc
        assert scraper.certificate_expiry == expiry.timestamp()
        assert outcome(scraper) == "links"
        assert xpum.connections == 1


@pytest.mark.parametrize("name", REFUSED)
def test_trust_is_refused_once_with_its_cause_and_an_advice_to(tmp_path: Path, name: str) -> None:
    (served, trusted), text = REFUSED[name]
    cert, trust = written(tmp_path, "tls.pem", served), written(tmp_path, "ca.crt", trusted)
    with (
        Simulator(NODE, Serving(cert=cert, key=cert)) as xpum,
        scraping(https(xpum.port, trust)) as scraper,
    ):
        error = refusal(scraper)
        assert error.reason is ScrapeReason.TLS
        assert re.search(text, text_of(error)), text_of(error)
        assert xpum.connections == 1
        assert xpum.requests == 0
