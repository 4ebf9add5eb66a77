"""What cert-manager makes of Certificate resources: keys, certificates and the Secrets' files."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# https://cert-manager.io/docs/reference/api-docs: what stands where a Certificate says nothing
_USAGES = ("digital signature", "key encipherment")
_LIFE = timedelta(days=90)

_KEY_USAGES = {
    "digital signature": "digital_signature",
    "key encipherment": "key_encipherment",
    "cert sign": "key_cert_sign",
    "crl sign": "crl_sign",
}
_EXTENDED_USAGES = {
    "server auth": ExtendedKeyUsageOID.SERVER_AUTH,
    "client auth": ExtendedKeyUsageOID.CLIENT_AUTH,
}


@dataclass(frozen=True)
class Issued:
    """A key and its certificate, signed by itself or by another."""

    key: _Key
    certificate: x509.Certificate
    issuer: "Issued | None" = None

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def expiry(self) -> float:
        """Seconds since 1970."""
        return self.certificate.not_valid_after_utc.timestamp()

    @property
    def secret(self) -> dict[str, bytes]:
        """Give the files of the Secret."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        return {"tls.crt": self.pem, "tls.key": key, "ca.crt": (self.issuer or self).pem}


def issue(
    manifest: Mapping[str, Any], issuer: Issued | None = None, *, life: timedelta = _LIFE
) -> Issued:
    """Make what a Certificate asks for; without an issuer it signs itself."""
    spec = manifest["spec"]
    is_ca = spec.get("isCA", False)
    key = _key(spec.get("privateKey", {}).get("algorithm", "RSA"))
    usages = [*spec.get("usages", _USAGES), *(["cert sign"] if is_ca else [])]
    subject = _name(spec.get("commonName"))
    now = datetime.now(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(_key_usage(usages), critical=True)
    )
    if is_ca:
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(own, critical=False)
    if issuer:
        its = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        builder = builder.add_extension(its, critical=False)
    if extended := [oid for usage, oid in _EXTENDED_USAGES.items() if usage in usages]:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    names = [
        *(x509.IPAddress(ip_address(address)) for address in spec.get("ipAddresses", ())),
        *(x509.DNSName(name) for name in spec.get("dnsNames", ())),
    ]
    if names:
        # Without a subject the names must be critical, says RFC 5280; cert-manager obeys.
        alternative = x509.SubjectAlternativeName(names)
        builder = builder.add_extension(alternative, critical=not subject.rdns)
    signer = issuer.key if issuer else key
    return Issued(key, builder.sign(signer, hashes.SHA256()), issuer)


def _key(algorithm: str) -> _Key:
    if algorithm == "ECDSA":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 2048)


def _name(common: str | None) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else [])


def _key_usage(usages: list[str]) -> x509.KeyUsage:
    asked = {_KEY_USAGES[usage] for usage in usages if usage in _KEY_USAGES}
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: name in asked for name in names})
