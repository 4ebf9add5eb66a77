"""The TLS context of the scrape, renewed when its files change and kept when they are broken."""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

_Contents: TypeAlias = tuple[bytes | None, ...]


class TrustError(Exception):
    """There is no usable trust: nothing can be verified, so nothing is fetched."""


@dataclass(frozen=True)
class TrustFiles:
    """What is trusted, and who we are where the server asks (mTLS)."""

    cert: Path
    """PEM: a CA, or the server's own certificate."""
    client_cert: Path | None = None
    client_key: Path | None = None


class Trust:
    """Gives the context to verify with; one context as long as the files are the same.

    A context costs 20 ms and some memory, so it is made once per content of the files. Files that
    are half written or gone keep the last good one, and `problem` says so.
    """

    def __init__(self, files: TrustFiles, changed: Callable[[], None]) -> None:
        """Call `changed` after each new context, so that old connections can be dropped."""
        self._files = files
        self._changed = changed
        self._seen: _Contents = ()
        self._context: ssl.SSLContext | None = None
        self.problem: str | None = None

    def context(self) -> ssl.SSLContext:
        """Give the context for the files as they are now. Raises `TrustError`."""
        contents = self._contents()
        if self._context is None or contents != self._seen:
            try:
                self._context = load_context(self._files)
            except TrustError as error:
                if self._context is None:
                    raise
                self.problem = f"{error}; the last good trust is kept"
            else:
                self._seen = contents
                self.problem = None
                self._changed()
        else:
            self.problem = None
        return self._context

    def _contents(self) -> _Contents:
        paths = (self._files.cert, self._files.client_cert, self._files.client_key)
        return tuple(_content(path) for path in paths if path)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def load_context(files: TrustFiles) -> ssl.SSLContext:
    """Make a context that verifies the server against the files. Raises `TrustError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the chain and the name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As Go: a leaf may be its own trust anchor, and a certificate without keyUsage is accepted.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(os.fspath(files.cert))
    except (OSError, ssl.SSLError) as error:
        raise TrustError(f"-cert {files.cert}: {_why(error)}") from error
    if files.client_cert:
        try:
            context.load_cert_chain(files.client_cert, files.client_key, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            key = f" and -client-key {files.client_key}" if files.client_key else ""
            raise TrustError(f"-client-cert {files.client_cert}{key}: {_why(error)}") from error
    return context


def _no_password() -> str:
    # Without this, OpenSSL asks on the terminal for the password of an encrypted key.
    raise OSError("the key is encrypted; give one without a password")


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no usable PEM in it ({error.reason or 'broken, or a part is missing'})"
    return error.strerror or str(error)
