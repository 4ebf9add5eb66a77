"""The trust follows its files: once per content, in any way they are replaced or broken."""

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from xelink.xpu_manager.errors import ErrorCode
from xelink.xpu_manager.tls import TlsContext, TlsFiles, TlsFilesError, load_context


class Changes:
    """Counts how often a new context was announced."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
def cert(tmp_path: Path) -> Path:
    file = tmp_path / "ca.crt"
    file.write_bytes(authority())
    return file


def authority() -> bytes:
    return trustme.CA().cert_pem.bytes()


def in_place(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def by_rename(file: Path, content: bytes) -> None:
    other = file.with_name("next")
    other.write_bytes(content)
    other.rename(file)


def as_before_on_the_outside(file: Path, content: bytes) -> None:
    """Another content of the same size, in the same inode, of the same time."""
    old = file.stat()
    file.write_bytes(content.ljust(old.st_size, b"\n")[: old.st_size])
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))


WAYS = pytest.mark.parametrize("replace", [in_place, by_rename])


def test_one_content_is_one_context(cert: Path, changes: Changes) -> None:
    trust = TlsContext(TlsFiles(cert), changes)
    first = trust.context()
    assert all(trust.context() is first for _ in range(5))
    by_rename(cert, cert.read_bytes())
    os.utime(cert, (1, 1))
    assert trust.context() is first
    assert changes.count == 1


@WAYS
def test_another_content_is_another_context(
    cert: Path, changes: Changes, replace: Callable[[Path, bytes], None]
) -> None:
    trust = TlsContext(TlsFiles(cert), changes)
    first = trust.context()
    replace(cert, authority())
    second = trust.context()
    assert second is not first
    assert trust.context() is second
    assert changes.count == 2
    assert second.get_ca_certs() != first.get_ca_certs()


def test_another_content_is_seen_whatever_size_and_time_say(cert: Path, changes: Changes) -> None:
    cert.write_bytes(cert.read_bytes() + b"\n" * 100)
    trust = TlsContext(TlsFiles(cert), changes)
    first = trust.context()
    before = cert.stat()
    as_before_on_the_outside(cert, authority())
    after = cert.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        *(before.st_ino, before.st_size, before.st_mtime_ns),
    )
    assert trust.context() is not first


def test_a_secret_that_kubelet_swaps_is_seen(tmp_path: Path, changes: Changes) -> None:
    def publish(name: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "ca.crt").write_bytes(authority())
        (tmp_path / "..data_tmp").symlink_to(name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    publish("..2026_01")
    (tmp_path / "ca.crt").symlink_to("..data/ca.crt")
    trust = TlsContext(TlsFiles(tmp_path / "ca.crt"), changes)
    first = trust.context()
    publish("..2026_02")
    second = trust.context()
    assert second is not first
    assert trust.context() is second
    assert trust.error is None


@WAYS
@pytest.mark.parametrize("damage", ["empty", "half", "garbage", "a key", "one and a half"])
def test_a_broken_file_keeps_the_last_good_trust_until_it_is_mended(
    cert: Path, changes: Changes, replace: Callable[[Path, bytes], None], damage: str
) -> None:
    good, other = cert.read_bytes(), authority()
    broken = {
        "empty": b"",
        "half": other[: len(other) // 2],
        "garbage": b"\0\xff" * 500,
        "a key": trustme.CA().private_key_pem.bytes(),
        "one and a half": other + good[: len(good) // 2],
    }[damage]
    trust = TlsContext(TlsFiles(cert), changes)
    first = trust.context()
    replace(cert, broken)
    for _ in range(2):
        assert trust.context() is first
        assert trust.error
        assert trust.error.code is ErrorCode.TLS_FILE
        assert trust.error.subjects == (str(cert),)
    replace(cert, good)
    assert trust.context() is first
    assert trust.error is None
    replace(cert, other)
    assert trust.context() is not first
    assert trust.error is None
    assert changes.count == 2


def test_a_file_that_vanished_keeps_the_last_good_trust_until_it_is_back(
    cert: Path, changes: Changes
) -> None:
    trust = TlsContext(TlsFiles(cert), changes)
    first = trust.context()
    cert.unlink()
    assert trust.context() is first
    assert trust.error
    assert trust.error.cause == "No such file or directory"
    cert.mkdir()
    assert trust.context() is first
    assert trust.error.cause == "Is a directory"
    cert.rmdir()
    cert.write_bytes(authority())
    assert trust.context() is not first
    assert trust.error is None


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nMII"])
def test_a_first_start_without_a_good_file_heals_when_there_is_one(
    tmp_path: Path, changes: Changes, content: bytes | None
) -> None:
    cert = tmp_path / "ca.crt"
    if content is not None:
        cert.write_bytes(content)
    trust = TlsContext(TlsFiles(cert), changes)
    for _ in range(2):
        with pytest.raises(TlsFilesError, match=f"^tls: TLS_FILE {cert} "):
            trust.context()
    cert.write_bytes(authority())
    assert trust.context().get_ca_certs()
    assert trust.error is None
    assert changes.count == 1


def identity(folder: Path, ca: trustme.CA) -> None:
    leaf = ca.issue_cert("client")
    (folder / "tls.crt").write_bytes(leaf.cert_chain_pems[0].bytes())
    (folder / "tls.key").write_bytes(leaf.private_key_pem.bytes())


def test_a_client_pair_that_is_half_rotated_keeps_the_old_one(
    tmp_path: Path, cert: Path, changes: Changes
) -> None:
    ca = trustme.CA()
    identity(tmp_path, ca)
    trust = TlsContext(TlsFiles(cert, tmp_path / "tls.crt", tmp_path / "tls.key"), changes)
    first = trust.context()
    new = tmp_path / "new"
    new.mkdir()
    identity(new, ca)
    (new / "tls.crt").rename(tmp_path / "tls.crt")
    assert trust.context() is first
    assert "KEY_VALUES_MISMATCH" in str(trust.error)
    (new / "tls.key").rename(tmp_path / "tls.key")
    assert trust.context() is not first
    assert trust.error is None


def test_an_encrypted_key_is_refused_without_asking(tmp_path: Path, cert: Path) -> None:
    identity(tmp_path, trustme.CA())
    key = serialization.load_pem_private_key((tmp_path / "tls.key").read_bytes(), None)
    (tmp_path / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
    )
    with pytest.raises(TlsFilesError, match="the key is encrypted; give one without a password"):
        load_context(TlsFiles(cert, tmp_path / "tls.crt", tmp_path / "tls.key"))


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("nowhere", "No such file or directory"),
        ("ca.crt", "no usable PEM in it"),
        (None, "no usable PEM in it"),
    ],
)
def test_a_client_certificate_without_its_key_is_refused_by_name(
    tmp_path: Path, cert: Path, key: str | None, why: str
) -> None:
    identity(tmp_path, trustme.CA())
    files = TlsFiles(cert, tmp_path / "tls.crt", tmp_path / key if key else None)
    with pytest.raises(TlsFilesError, match=why) as caught:
        load_context(files)
    files_named = (tmp_path / "tls.crt", *([tmp_path / key] if key else []))
    assert caught.value.subjects == tuple(map(str, files_named))
    assert caught.value.code is (ErrorCode.CLIENT_FILES if key else ErrorCode.CLIENT_FILE)


def test_the_context_verifies_and_speaks_no_old_version(cert: Path) -> None:
    context = load_context(TlsFiles(cert))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1
    assert context.keylog_filename is None
