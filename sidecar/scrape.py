"""One GET of XPU Manager's metrics: the one module that knows httpx."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import tenacity

from sidecar.classification import Reason
from sidecar.exposition import Reader, Reading, Sieve, TooManyRowsError
from sidecar.trust import Trust, TrustError, TrustFiles

HOST = "127.0.0.1"

_CHUNK = 1 << 16
_ATTEMPTS = 3
_FIRST_WAIT = 0.2
_DETAIL_LIMIT = 160
_OK = 200
_UNAUTHORIZED = 401

# After a wrong password the server holds one of its four threads asleep, each time for longer.
_BACKOFF_FIRST = 60.0
_BACKOFF_MOST = 3600.0


class ScrapeError(Exception):
    """XPU Manager gave no usable answer: what is published still stands."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Credentials:
    """HTTP Basic; the password is read from its file for each scrape, so that it can rotate."""

    username: str
    password_file: Path


@dataclass(frozen=True)
class Target:
    """Where to scrape, and within which bounds."""

    port: int
    trust: TrustFiles | None = None
    credentials: Credentials | None = None
    timeout: float = 30.0
    """Seconds for the whole scrape, retries included."""
    max_body: int = 64 << 20
    """Bytes."""

    @property
    def url(self) -> str:
        """Where the metrics are; HTTPS as soon as there is something to verify with."""
        return f"http{'s' if self.trust else ''}://{HOST}:{self.port}/metrics"


class _Login:
    """HTTP Basic, and the patience that a refusal asks for."""

    def __init__(self, credentials: Credentials | None, monotonic: Callable[[], float]) -> None:
        self._credentials = credentials
        self._monotonic = monotonic
        self._password: str | None = None
        self._refusals = 0
        self._not_before = 0.0

    def auth(self) -> httpx.Auth | None:
        """Give what to send. Raises `ScrapeError` while it is too early to try again."""
        password: str | None = None
        if self._credentials:
            file = self._credentials.password_file
            try:
                password = file.read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise ScrapeError(Reason.UNAUTHORIZED, f"-password-file {file}: {error}") from error
        left = self._not_before - self._monotonic()
        if self._refusals and left > 0 and password == self._password:
            raise ScrapeError(
                Reason.UNAUTHORIZED,
                f"refused {self._refusals} times; not asked again for {left:.0f} s, or until the"
                " password changes",
            )
        self._password = password
        if self._credentials is None or password is None:
            return None
        return httpx.BasicAuth(self._credentials.username, password)

    def accepted(self) -> None:
        self._refusals = 0

    def refused(self, detail: str) -> str:
        """Wait longer before the next try; give the advice for the user."""
        wait = min(_BACKOFF_MOST, _BACKOFF_FIRST * 2**self._refusals)
        self._refusals += 1
        self._not_before = self._monotonic() + wait
        advice = "check" if self._credentials else "give"
        return f"{detail}; {advice} -username and -password-file; asked again in {wait:.0f} s"


class Scraper:
    """Fetches and parses the metrics; one connection, one request in flight."""

    def __init__(
        self,
        target: Target,
        *,
        bounded: Callable[[float], AbstractContextManager[None]],
        sleep: Callable[[float], None],
        monotonic: Callable[[], float],
        user_agent: str = "xelink-sidecar",
    ) -> None:
        """Take how to bound a block in time, how to sleep, and a clock in seconds."""
        self._target = target
        self._bounded = bounded
        self._sleep = sleep
        self._headers = {
            "Accept": "text/plain",
            "Accept-Encoding": "identity",
            "User-Agent": user_agent,
        }
        self._reader = Reader()
        self._trust = Trust(target.trust, self.close) if target.trust else None
        self._client: httpx.Client | None = None
        self._login = _Login(target.credentials, monotonic)
        self.certificate_expiry: float | None = None
        """When the server's certificate ends, in seconds since 1970."""

    @property
    def url(self) -> str:
        """Where the metrics come from."""
        return self._target.url

    @property
    def trust_problem(self) -> str | None:
        """Why the files of the trust, as they are now, cannot be used."""
        return self._trust.problem if self._trust else None

    def close(self) -> None:
        """Drop the connection."""
        client, self._client = self._client, None
        if client:
            client.close()

    def scrape(self) -> Reading:
        """Fetch the metrics once. Raises `ScrapeError`."""
        auth = self._login.auth()
        try:
            with self._bounded(self._target.timeout), _translated():
                return self._retrying(auth)
        except TimeoutError:
            self.close()
            raise ScrapeError(
                Reason.TIMEOUT, f"no whole answer within {self._target.timeout:g} s"
            ) from None
        except ScrapeError:
            self.close()
            raise

    def _retrying(self, auth: httpx.Auth | None) -> Reading:
        """Try again what a moment can heal: XPU Manager restarts, or hung up between scrapes."""
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(_heals),
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_exponential(multiplier=_FIRST_WAIT),
            sleep=self._sleep,
            reraise=True,
        ):
            with attempt:
                return self._get(auth)
        raise AssertionError("tenacity ends with a result or an exception")

    def _get(self, auth: httpx.Auth | None) -> Reading:
        context = self._trust.context() if self._trust else None
        if self._client is None:
            self._client = _client(context, self._target.timeout)
        with (
            _hung_up(),
            self._client.stream(
                "GET", self._target.url, headers=self._headers, auth=auth
            ) as response,
        ):
            self._note_certificate(response)
            self._check(response)
            sieve = Sieve()
            size = 0
            for chunk in response.iter_raw(_CHUNK):
                size += len(chunk)
                if size > self._target.max_body:
                    raise ScrapeError(Reason.TOO_LARGE, self._too_large())
                sieve.feed(chunk)
        return self._reader.read(sieve)

    def _check(self, response: httpx.Response) -> None:
        if response.status_code != _OK:
            detail = f"{response.status_code} {_first_line(response)}".strip()
            if response.status_code == _UNAUTHORIZED:
                raise ScrapeError(Reason.UNAUTHORIZED, self._login.refused(detail))
            raise ScrapeError(Reason.STATUS, detail)
        self._login.accepted()
        if encoding := response.headers.get("Content-Encoding"):
            raise ScrapeError(Reason.PROTOCOL, f"content encoding {encoding!r} was not asked for")
        if int(response.headers.get("Content-Length", 0)) > self._target.max_body:
            raise ScrapeError(Reason.TOO_LARGE, self._too_large())

    def _too_large(self) -> str:
        return f"the body is longer than {self._target.max_body} bytes (-max-body)"

    def _note_certificate(self, response: httpx.Response) -> None:
        stream = response.extensions["network_stream"]
        tls = stream.get_extra_info("ssl_object")
        certificate = tls.getpeercert() if tls else None
        if certificate:
            self.certificate_expiry = ssl.cert_time_to_seconds(certificate["notAfter"])


def _client(context: ssl.SSLContext | None, timeout: float) -> httpx.Client:
    return httpx.Client(
        # Without a context httpx would load every CA of the world, for plain HTTP, too.
        verify=context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        # No proxy, whatever the environment says: this is loopback. It must be said here.
        trust_env=False,
        follow_redirects=False,
        timeout=timeout,
        limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
    )


def _heals(error: BaseException) -> bool:
    """Tell what a moment can heal: refused or reset, but never a failed verification."""
    return isinstance(error, httpx.NetworkError | _HungUpError) and not any(
        isinstance(cause, ssl.SSLError) for cause in _causes(error)
    )


class _HungUpError(Exception):
    """The server closed the connection before it answered."""


@contextmanager
def _hung_up() -> Iterator[None]:
    """Tell a server that hung up, as at the end of a keep-alive, from one that speaks no HTTP."""
    try:
        yield
    except httpx.RemoteProtocolError as error:
        if "disconnected without sending" in str(error):
            raise _HungUpError(str(error)) from error
        raise


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what can go wrong on the way into the reason that the operator is told."""
    try:
        yield
    except TrustError as error:
        raise ScrapeError(Reason.TLS, str(error)) from error
    except TooManyRowsError as error:
        raise ScrapeError(Reason.TOO_LARGE, str(error)) from error
    except httpx.TimeoutException as error:
        raise TimeoutError from error
    except (_HungUpError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        causes = tuple(_causes(error))
        for kind, reason in _REASONS:
            if cause := next((cause for cause in causes if isinstance(cause, kind)), None):
                raise ScrapeError(reason, _say(cause)) from error
        raise ScrapeError(Reason.PROTOCOL, _say(error)) from error


# The first kind that is found among an error and its causes decides.
_REASONS = (
    (ssl.SSLError, Reason.TLS),
    (ConnectionRefusedError, Reason.REFUSED),
    (httpx.ConnectError, Reason.REFUSED),
    (httpx.NetworkError, Reason.RESET),
    (_HungUpError, Reason.RESET),
)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _say(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message}{_TLS_ADVICE.get(error.verify_code, '')}"
    if isinstance(error, ssl.SSLError):
        return f"{error.reason or error}; does XPU Manager speak HTTPS on this port?"
    return " ".join(str(error).split()) or type(error).__name__


# By OpenSSL's X509_V_ERR codes
_TLS_ADVICE = {
    10: "; renew it",
    18: "; the file of -cert does not contain it",
    19: "; the file of -cert does not contain its CA",
    20: "; the file of -cert does not contain its CA",
    62: "; it needs a subjectAltName for the host",
    64: f"; it needs subjectAltName=IP:{HOST}",
}


def _first_line(response: httpx.Response) -> str:
    """Give the beginning of an error's body, which often says what is wrong."""
    beginning = next(response.iter_raw(_DETAIL_LIMIT), b"").decode(errors="replace")
    line = beginning.strip().partition("\n")[0].strip()
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:_DETAIL_LIMIT]
