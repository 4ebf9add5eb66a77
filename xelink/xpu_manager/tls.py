"""The TLS context of the scrape, renewed when its files change and kept when they are broken."""

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from xelink.daemon.files import Read, read_file
from xelink.xpu_manager.errors import ErrorCode, ScrapeError

MOST = 1 << 20
"""Bytes of one file: five times what a distribution trusts in all."""


class _File(NamedTuple):
    """What is in a file: `content` is None, and `problem` says why, where it cannot be read."""

    path: Path
    content: bytes | None
    problem: str = ""


_Files: TypeAlias = tuple[_File, ...]


class TlsFilesError(ScrapeError):
    """The TLS files cannot be used: nothing can be verified, so nothing is fetched."""


@dataclass(frozen=True)
class TlsFiles:
    """What the server is verified against, and who we are where it asks (mTLS)."""

    cert: Path
    """PEM: a CA, or the server's own certificate."""
    client_cert: Path | None = None
    client_key: Path | None = None


class TlsContext:
    """The context to verify with; one context as long as the files are the same.

    A context costs 20 ms and some memory, so it is made once per content of the files. Files that
    are half written or gone keep the last good one, and `error` is what is wrong with them.
    """

    def __init__(
        self, files: TlsFiles, changed: Callable[[], None], read: Read = read_file
    ) -> None:
        """Call `changed` after each new context, so that old connections can be dropped.

        `read` is how files are read.
        """
        self._files = files
        self._changed = changed
        self._read = read
        self._loaded: _Files = ()
        self._context: ssl.SSLContext | None = None
        self.error: TlsFilesError | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context for the files as they are now. Raises `TlsFilesError`."""
        files = _read(self._files, self._read)
        if self._context is None or files != self._loaded:
            try:
                self._context = _context(*files)
            except TlsFilesError as error:
                if self._context is None:
                    raise
                self.error = error
            else:
                self._loaded = files
                self.error = None
                self._changed()
        else:
            self.error = None
        return self._context


def load_context(files: TlsFiles) -> ssl.SSLContext:
    """Make a context that verifies the server against the files. Raises `TlsFilesError`."""
    return _context(*_read(files, read_file))


def _read(files: TlsFiles, read: Read) -> _Files:
    own = (files.client_cert, files.client_key) if files.client_cert else ()
    return tuple(_file(path, read) for path in (files.cert, *own) if path)


def _file(path: Path, read: Read) -> _File:
    try:
        return _File(path, read(path, MOST))
    except TimeoutError:  # of the whole scrape, not of this file
        raise
    except OSError as error:
        return _File(path, None, error.strerror or str(error))


def _context(
    cert: _File, client_cert: _File | None = None, client_key: _File | None = None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the chain and the name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As Go: a leaf may be its own trust anchor, and a certificate without keyUsage is accepted.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    with _explained(ErrorCode.TLS_FILE, cert), _in_memory(cert) as path:
        context.load_verify_locations(path)
    if client_cert:
        with (
            _explained(ErrorCode.CLIENT_FILES, client_cert, client_key)
            if client_key
            else _explained(ErrorCode.CLIENT_FILE, client_cert),
            _in_memory(client_cert) as path,
            _in_memory(client_key or client_cert) as key_path,
        ):
            context.load_cert_chain(path, key_path, password=_no_password)
    return context


@contextmanager
def _explained(code: ErrorCode, *files: _File) -> Iterator[None]:
    try:
        yield
    except (OSError, ssl.SSLError) as error:
        paths = (str(file.path) for file in files)
        raise TlsFilesError(code, *paths, cause=_why(error)) from error


@contextmanager
def _in_memory(file: _File) -> Iterator[str]:
    """Return a path at which OpenSSL finds what was read, which it could read but from a path.

    By the file's own path it would read what is not bounded, and perhaps something else.
    """
    if file.content is None:
        raise OSError(0, file.problem)
    descriptor = os.memfd_create("pem")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as memory:
            memory.write(file.content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _no_password() -> str:
    # Without this, OpenSSL asks on the terminal for the password of an encrypted key.
    raise OSError("the key is encrypted; give one without a password")


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no usable PEM in it ({error.reason or 'broken, or a part is missing'})"
    return error.strerror or str(error)
