"""One GET of XPU Manager's metrics, by httpx."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import httpx
import tenacity

from xelink.daemon.descriptors import is_shortage
from xelink.daemon.files import Read, TimedReader
from xelink.topology.text import printable
from xelink.xpu_manager.errors import ErrorCode, ScrapeError
from xelink.xpu_manager.exposition import Exposition, ExpositionReader
from xelink.xpu_manager.line_filter import TooManyRowsError
from xelink.xpu_manager.tls import TlsContext, TlsFiles
from xelink.xpu_manager.transport import CERTIFICATE, HungUpError, Transport

HOST = "127.0.0.1"

_ATTEMPTS = 3
_FIRST_WAIT = 0.2
_DETAIL_LIMIT = 160
_OK = 200
_UNAUTHORIZED = 401

# After a wrong password the server holds one of its four threads asleep, each time for longer.
_BACKOFF_FIRST = 60.0
_BACKOFF_MOST = 3600.0

_MOST_PASSWORD = 4096  # bytes
# Of a scrape's time, for each of its four files; and no longer than this many seconds.
_FILE_SHARE = 1 / 8
_FILE_SECONDS = 2.0


@dataclass(frozen=True)
class Credentials:
    """HTTP Basic; the password is read from its file for each scrape, so that it can rotate."""

    username: str
    password_file: Path


@dataclass(frozen=True)
class ScrapeTarget:
    """Where to scrape, and within which bounds."""

    port: int
    tls: TlsFiles | None = None
    credentials: Credentials | None = None
    timeout: float = 30.0
    """Seconds for the whole scrape, retries included."""
    max_body: int = 64 << 20
    """Bytes."""
    host: str = HOST

    @property
    def url(self) -> str:
        """Where the metrics are; HTTPS as soon as there is something to verify with."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}/metrics"


class _Login:
    """HTTP Basic, and the back-off after a rejection."""

    def __init__(
        self, credentials: Credentials | None, monotonic: Callable[[], float], read: Read
    ) -> None:
        self._credentials = credentials
        self._read = read
        self._monotonic = monotonic
        self._sent: bytes | None = None
        self._accepted: bytes | None = None
        self._rejected: bytes | None = None
        self._rejections = 0
        self._not_before = 0.0

    def auth(self) -> httpx.Auth | None:
        """Return what to send. Raises `ScrapeError` while it is too early to try again."""
        password = self._password(self._credentials.password_file) if self._credentials else None
        left = self._not_before - self._monotonic()
        if self._rejections and left > 0 and password == self._rejected:
            raise ScrapeError(
                ErrorCode.NOT_ASKED_AGAIN,
                cause=f"rejected {self._rejections} times, or not answered",
                seconds=left,
            )
        self._sent = password
        if self._credentials is None or password is None:
            return None
        return httpx.BasicAuth(self._credentials.username, password)

    def accepted(self) -> None:
        self._rejections = 0
        self._accepted = self._sent

    def rejected(self) -> tuple[ErrorCode, float]:
        """Wait longer before the next try; return the error, and for how many seconds."""
        wait = min(_BACKOFF_MOST, _BACKOFF_FIRST * 2**self._rejections)
        self._rejections += 1
        self._rejected = self._sent
        self._not_before = self._monotonic() + wait
        code = ErrorCode.PASSWORD_REJECTED if self._credentials else ErrorCode.PASSWORD_WANTED
        return code, wait

    def unanswered(self) -> None:
        """Take silence for a rejection, unless this password was accepted before.

        The server sleeps before it refuses, each time for longer, and holds one of its four
        threads meanwhile: a wrong password may never be answered in time.
        """
        again = self._rejections and self._sent == self._rejected
        if again or (self._sent is not None and self._sent != self._accepted):
            self.rejected()

    def _password(self, file: Path) -> bytes:
        try:
            password = self._read(file, _MOST_PASSWORD).rstrip(b"\r\n")
        except TimeoutError:  # of the whole scrape, not of this file
            raise
        except OSError as error:
            detail = error.strerror or str(error)
            if is_shortage(error):
                raise _shortage(error) from error
            raise ScrapeError(ErrorCode.PASSWORD_FILE, str(file), cause=detail) from error
        if not password:
            raise ScrapeError(ErrorCode.PASSWORD_FILE, str(file), cause="there is none in it")
        return password


class Scraper:
    """Scrapes and parses the metrics; one connection, one request in flight."""

    def __init__(
        self,
        target: ScrapeTarget,
        *,
        bounded: Callable[[float], AbstractContextManager[None]],
        sleep: Callable[[float], None],
        monotonic: Callable[[], float],
        user_agent: str = "xelink-sidecar",
    ) -> None:
        """Take how to bound a block in time, how to sleep, and a clock in seconds."""
        self._target = target
        self._bounded = bounded
        # Tries again what may pass in a moment: XPU Manager restarts, or hung up between scrapes.
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_exponential(multiplier=_FIRST_WAIT),
            sleep=sleep,
            reraise=True,
        )
        self._request = httpx.Request(
            "GET",
            target.url,
            headers={
                "Accept": "text/plain",
                "Accept-Encoding": "identity",
                "Connection": "keep-alive",
                "User-Agent": user_agent,
            },
        )
        self._reader = ExpositionReader()
        read = TimedReader(min(_FILE_SECONDS, target.timeout * _FILE_SHARE))
        self._tls = TlsContext(target.tls, self.close, read) if target.tls else None
        self._transport: Transport | None = None
        self._login = _Login(target.credentials, monotonic, read)
        self.certificate_expiry: float | None = None
        """When the server's certificate ends, in seconds since 1970."""
        self.content_type: str | None = None
        """The Content-Type of the last answer, good or bad."""

    @property
    def url(self) -> str:
        """Where the metrics come from."""
        return self._target.url

    @property
    def tls_error(self) -> ScrapeError | None:
        """Why the TLS files, as they are now, cannot be used; the last good ones are."""
        return self._tls.error if self._tls else None

    def hang_up(self) -> None:
        """Drop the connection: the next scrape makes a new one."""
        if self._transport:
            self._transport.close()

    def close(self) -> None:
        """Drop the connection, and what it was made with."""
        transport, self._transport = self._transport, None
        if transport:
            transport.close()

    def scrape(self) -> Exposition:
        """Fetch the metrics once. Raises `ScrapeError`."""
        try:
            with self._bounded(self._target.timeout), _translated(plain=not self._tls):
                return self._retrying(self._get, self._login.auth())
        except TimeoutError as error:
            self.hang_up()
            if isinstance(error.__cause__, httpx.ReadTimeout):  # the request was sent
                self._login.unanswered()
            code = ErrorCode.NO_ANSWER_IN_TIME
            if self._tls and isinstance(error.__cause__, httpx.ConnectTimeout):
                code = ErrorCode.NO_HANDSHAKE_IN_TIME
            raise ScrapeError(code, seconds=self._target.timeout) from None
        except ScrapeError:
            self.hang_up()
            raise

    def _get(self, auth: httpx.Auth | None) -> Exposition:
        context = self._tls.context() if self._tls else None
        if self._transport is None:
            self._transport = Transport(context, self._target.timeout)
        request = next(auth.sync_auth_flow(self._request)) if auth else self._request
        # Without a client of httpx there is no proxy, whatever the environment says, nobody who
        # follows a redirect, and no jar of cookies that whoever answers could fill.
        with closing(self._transport.handle_request(request)) as response:
            self._note_certificate(response)
            self.content_type = response.headers.get("Content-Type")
            self._check(response)
            lines = self._reader.line_filter()
            size = 0
            for chunk in response.iter_raw():
                size += len(chunk)
                if size > self._target.max_body:
                    raise self._too_large()
                lines.feed(chunk)
        return self._reader.read(lines)

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == _UNAUTHORIZED:
            code, wait = self._login.rejected()  # before its body is read, which may fail
            raise ScrapeError(code, cause=_answer(response), seconds=wait)
        if response.status_code != _OK:
            raise ScrapeError(ErrorCode.STATUS, cause=_answer(response))
        self._login.accepted()
        encoding = response.headers.get("Content-Encoding", "")
        if any(word.strip().lower() not in {"", "identity"} for word in encoding.split(",")):
            cause = f"content encoding {encoding!r} was not asked for"
            raise ScrapeError(ErrorCode.PROTOCOL, cause=cause)
        length = response.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()):
            raise ScrapeError(ErrorCode.PROTOCOL, cause=f"content length {length!r} is none")
        if int(length) > self._target.max_body:
            raise self._too_large()

    def _too_large(self) -> ScrapeError:
        return ScrapeError(ErrorCode.BODY_TOO_LARGE, str(self._target.max_body))

    def _note_certificate(self, response: httpx.Response) -> None:
        certificate = response.extensions.get(CERTIFICATE)
        if certificate:
            self.certificate_expiry = _seconds(certificate["notAfter"])


# Nearly always the time that was read last: reading it takes longer than all else of a certificate.
_seconds = lru_cache(maxsize=1)(ssl.cert_time_to_seconds)


def _is_transient(error: BaseException) -> bool:
    """Return whether it may pass in a moment: refused or reset, never a failed verification."""
    return isinstance(error, httpx.NetworkError | HungUpError) and not any(
        isinstance(cause, ssl.SSLError) for cause in _causes(error)
    )


@contextmanager
def _translated(*, plain: bool) -> Iterator[None]:
    """Turn what can go wrong on the way into a `ScrapeError`; `plain` is without TLS."""
    try:
        yield
    except TooManyRowsError as error:
        raise ScrapeError(ErrorCode.TOO_MANY_ROWS, cause=str(error)) from error
    except httpx.TimeoutException as error:
        raise TimeoutError from error
    except (HungUpError, httpx.HTTPError, ValueError) as error:
        causes = tuple(_causes(error))
        if shortage := next(filter(is_shortage, causes), None):
            raise _shortage(shortage) from error
        for kind in _KINDS:
            if cause := next((cause for cause in causes if isinstance(cause, kind)), None):
                raise ScrapeError(_code(cause, plain=plain), cause=_text(cause)) from error
        raise ScrapeError(ErrorCode.PROTOCOL, cause=_text(error)) from error


# The first kind that is found among an error and its causes decides.
_KINDS = (
    ssl.SSLError,
    ConnectionRefusedError,
    ConnectionResetError,
    httpx.ConnectError,
    httpx.NetworkError,
    HungUpError,
)


def _code(error: BaseException, *, plain: bool) -> ErrorCode:
    match error:
        case ssl.SSLCertVerificationError():
            return _CERTIFICATE_CODES.get(error.verify_code, ErrorCode.NOT_VERIFIED)
        case ssl.SSLError():
            return _TLS_CODES.get(error.reason, ErrorCode.NO_TLS)
        case ConnectionRefusedError():
            return ErrorCode.NOTHING_LISTENS
        case httpx.ConnectError():
            return ErrorCode.NOT_CONNECTED
    return ErrorCode.HUNG_UP_ON_PLAIN_HTTP if plain else ErrorCode.HUNG_UP


# By OpenSSL's X509_V_ERR codes
_CERTIFICATE_CODES = {
    7: ErrorCode.NOT_OF_THAT_CA,  # a CA of the same name signed it
    9: ErrorCode.NOT_YET_VALID,
    10: ErrorCode.EXPIRED,
    18: ErrorCode.SELF_SIGNED,
    19: ErrorCode.NOT_OF_THAT_CA,
    20: ErrorCode.NOT_OF_THAT_CA,
    24: ErrorCode.NO_CA,
    26: ErrorCode.NOT_FOR_SERVERS,
    62: ErrorCode.NO_NAME,
    64: ErrorCode.NO_ADDRESS,
    79: ErrorCode.NO_CA,
}

# By OpenSSL's names of reasons
_TLS_CODES = {
    "SSLV3_ALERT_HANDSHAKE_FAILURE": ErrorCode.CLIENT_PERHAPS_WANTED,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": ErrorCode.CLIENT_WANTED,
    "SSLV3_ALERT_BAD_CERTIFICATE": ErrorCode.CLIENT_REJECTED,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": ErrorCode.CLIENT_EXPIRED,
    "TLSV1_ALERT_UNKNOWN_CA": ErrorCode.CLIENT_OF_UNKNOWN_CA,
    "TLSV1_ALERT_PROTOCOL_VERSION": ErrorCode.TLS_VERSION,
    "UNSUPPORTED_PROTOCOL": ErrorCode.TLS_VERSION,
}


def _shortage(error: BaseException) -> ScrapeError:
    return ScrapeError(ErrorCode.NO_RESOURCES, cause=str(getattr(error, "strerror", error)))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _text(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    return " ".join(str(error).split())[:_DETAIL_LIMIT] or type(error).__name__


def _answer(response: httpx.Response) -> str:
    """Return the status and the beginning of an error's body, which often explains it."""
    beginning = b""
    with suppress(httpx.HTTPError):  # the status is known, whatever becomes of the body
        beginning = next(response.iter_raw(_DETAIL_LIMIT), b"")
    line = beginning.decode(errors="replace").strip().partition("\n")[0].strip()
    return f"{response.status_code} {printable(line, _DETAIL_LIMIT)}".strip()
