"""The exporter's HTTP(S) server: four workers, credentials, and every misbehaviour on demand."""

import hmac
import socket
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException, parse_headers
from io import BytesIO
from pathlib import Path
from threading import Condition, Event, Lock, Timer, current_thread
from types import TracebackType
from typing import Any, Self, TypeAlias

from xelink.daemon.http_requests import MOST_HEAD
from xelink.simulators.xpu_manager import control
from xelink.simulators.xpu_manager.blueprint import Blueprint
from xelink.simulators.xpu_manager.exchange import HTML, Exchange, MetricsRequest, Moment
from xelink.simulators.xpu_manager.faults import (
    MISBEHAVIOURS,
    REFUSE,
    UNHEALTHY,
    Misbehaviour,
    Option,
    bound,
    named,
    spelt,
)
from xelink.simulators.xpu_manager.listener import TIMEOUT, Listener, RequestReader
from xelink.simulators.xpu_manager.node import SimulatedNode

METRICS = "/metrics"
HEALTH = "/healtz"
CONTROL = "/control"

_LONGEST_BODY = 1_000_000
_MOST_DOUBLINGS = 7  # 2, 4, ... 256 s where the first sleep is 2 s
_REMEMBERED = 1000
_LONG = 120.0  # seconds: what takes longer never comes, however busy a machine is


Act: TypeAlias = Callable[[Exchange], None]


@dataclass(frozen=True)
class Serving:
    """How the server serves; every field is a flag of the command line.

    `auth_sleep` is the first sleep before a 401, in seconds; each further one doubles up to 128
    times as long, as the real 2, 4, ... 256 s. `latency` comes before each answer (the real one
    takes 0.1 s and more). `workers` is how many requests are handled at a time.
    """

    bind: str = "127.0.0.1"
    port: int = 0
    cert: Path | None = None
    key: Path | None = None
    username: str = "xpumadmin"
    password: str | None = field(default=None, repr=False)
    auth_sleep: float = 0.05
    latency: float = 0.0
    keep_alive: float = 2.0
    workers: int = 4
    control: bool = True

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ValueError("a certificate and its key go together: give both or none")
        if self.workers < 1:
            raise ValueError("at least one worker must serve")

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """Certificate and key, where it serves HTTPS."""
        return (self.cert, self.key) if self.cert and self.key else None


@dataclass
class _Incident:
    """A misbehaviour in force; `left` counts down, None lasts until recovered."""

    name: str
    options: Mapping[str, Option]
    act: Act
    left: int | None


class Simulator:
    """An XPU Manager in this process: `with Simulator(node) as xpum: httpx.get(xpum.url)`.

    Everything may be changed while it runs and from any thread: `xpum.node = ...` is the next
    answer, `misbehave` and `recover` are the next exchange. Leaving the block ends every
    connection, thread and socket.
    """

    def __init__(self, node: SimulatedNode | None = None, serving: Serving | None = None) -> None:
        self.serving = serving or Serving()
        self.first_node = node or Blueprint().build()
        self._node = self.first_node
        self._changed = Condition()
        self._turning = Lock()
        self._recovered = Event()
        self._incident: _Incident | None = None
        self._timer: Timer | None = None
        self._stopping = False
        self._free = self.serving.workers
        self._seen: deque[MetricsRequest] = deque(maxlen=_REMEMBERED)
        self._requests = self._answers = 0
        self._in_flight = self._busiest = self._failures = 0
        self._listening = Listener(
            (self.serving.bind, self.serving.port),
            self.serving.tls,
            self.serving.keep_alive,
            self._serve,
        )

    # --- Life ---

    def start(self) -> Self:
        """Listen and serve; raises `OSError` when the port or a TLS file cannot be had."""
        self._listening.open()
        return self

    def close(self) -> None:
        """Stop listening, end every exchange and connection, and wait for every thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._settle(None)
        self._listening.end()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- What a test or a demo turns ---

    @property
    def node(self) -> SimulatedNode:
        """The node that the next answer reports."""
        return self._node

    @node.setter
    def node(self, node: SimulatedNode) -> None:
        self._node = node

    def misbehave(
        self,
        what: str | Misbehaviour,
        *,
        times: int | None = None,
        seconds: float | None = None,
        **options: Option,
    ) -> None:
        """Misbehave on every GET of the metrics until recovered, or so many times or seconds long.

        `what` is a name in `MISBEHAVIOURS`, a function like those there, or `refuse`, which stops
        listening and drops all other connections, and cannot count requests. Raises `ValueError`
        for what there is not, and then nothing has changed.
        """
        if times is not None and (what == REFUSE or times < 1):
            raise ValueError("times must be 1 or more, and a refused connection is not counted")
        if seconds is not None and not seconds > 0:
            raise ValueError("seconds must be more than 0")
        act = _behave if what == REFUSE else named(what) if isinstance(what, str) else what
        name = what if isinstance(what, str) else spelt(what)
        self._settle(_Incident(name, options, bound(act, options), times))
        if seconds is not None:
            self._start_timer(seconds)
        if name == REFUSE:
            self._listening.shut()
        else:
            self._listening.open()

    def recover(self) -> None:
        """Behave again, and let go of every exchange that hangs."""
        self._settle(None)
        self._listening.open()

    @property
    def misbehaviour(self) -> str | None:
        """Name of the misbehaviour in force."""
        incident = self._incident
        return incident.name if incident else None

    # --- What a test asks ---

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._listening.port

    @property
    def base_url(self) -> str:
        """Scheme, address and port, for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.serving.bind, self.serving.bind)  # noqa: S104 - compared, not bound
        scheme = "https" if self.serving.cert else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def url(self) -> str:
        """Where the metrics are."""
        return self.base_url + METRICS

    @property
    def requests(self) -> int:
        """How many requests for the metrics a worker has taken."""
        return self._requests

    @property
    def answers(self) -> int:
        """How many of them are done with, well or badly."""
        return self._answers

    @property
    def connections(self) -> int:
        """How many connections were ever accepted."""
        return self._listening.accepted

    @property
    def busiest(self) -> int:
        """How many requests for the metrics were handled at once, at most."""
        return self._busiest

    @property
    def seen(self) -> tuple[MetricsRequest, ...]:
        """The latest requests for the metrics, oldest first."""
        with self._changed:
            return tuple(self._seen)

    def wait_for_request(self, total: int | None = None, timeout: float = _LONG) -> None:
        """Wait until workers have taken so many requests for the metrics in all; or one more.

        Raises `TimeoutError`.
        """
        self._wait_for(lambda: self._requests, total, timeout)

    def wait_for_answer(self, total: int | None = None, timeout: float = _LONG) -> None:
        """Wait until so many requests for the metrics are done with in all; or one more."""
        self._wait_for(lambda: self._answers, total, timeout)

    def _wait_for(self, now: Callable[[], int], total: int | None, timeout: float) -> None:
        with self._changed:
            wanted = now() + 1 if total is None else total
            if not self._changed.wait_for(lambda: now() >= wanted, timeout):
                raise TimeoutError(f"{now()} of {wanted} requests in {timeout} s")

    def state(self) -> dict[str, Any]:
        """Return what `GET /control` shows."""
        with self._changed:
            incident = self._incident
            state = incident and {"name": incident.name, "left": incident.left, **incident.options}
            return {
                "misbehaviour": state,
                "requests": self._requests,
                "answers": self._answers,
                "connections": self.connections,
                "node": control.node_state(self._node),
            }

    # --- Incidents ---

    def _settle(self, incident: _Incident | None) -> None:
        """Let go of what hangs, and of what would end it later, in favor of this."""
        with self._changed:
            self._incident = incident
            self._recovered.set()
            if not self._stopping:
                self._recovered = Event()
            timer, self._timer = self._timer, None
        if timer and timer is not current_thread():
            timer.cancel()
            timer.join()

    def _start_timer(self, seconds: float) -> None:
        with self._changed:
            if not self._stopping:
                self._timer = Timer(seconds, self._recover_in_time)
                self._timer.start()

    def _recover_in_time(self) -> None:
        with self._changed:
            if self._timer is not current_thread():
                return  # something else came between
        self.recover()

    # --- One connection ---

    def _serve(self, connection: socket.socket, reader: RequestReader) -> bool:
        """Serve one request; return whether the connection goes on."""
        try:
            request = _read(connection, reader)
        except (HTTPException, ValueError):
            return False  # no HTTP: gunicorn hangs up as well
        if request is None:
            return False
        goes_on = self._route(connection, request)
        return goes_on and not self._stopping

    def _route(self, connection: socket.socket, request: MetricsRequest) -> bool:
        """Answer a request; return whether the connection goes on."""
        exchange = Exchange(connection, request, Moment(self._node))
        if self.serving.control and f"{request.path}/".startswith(f"{CONTROL}/"):
            self._control(exchange)
        elif request.path not in (METRICS, HEALTH):
            exchange.not_found()
        elif request.method not in ("GET", "HEAD"):
            exchange.not_allowed()
        elif not self._take_worker():
            return False
        else:
            try:
                if request.path == HEALTH:
                    self._health(exchange)
                else:
                    exchange = self._metrics(connection, request)
            finally:
                self._free_worker()
        return not exchange.ends_here

    def _take_worker(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._stopping)
            self._free -= 1
            return not self._stopping

    def _free_worker(self) -> None:
        with self._changed:
            self._free += 1
            self._changed.notify_all()

    def _metrics(self, connection: socket.socket, request: MetricsRequest) -> Exchange:
        admitted = self._admits(request)
        # In one step, so that who waits for the request finds it misbehaved to, and ends that.
        with self._changed:
            moment = Moment(self._node, self._recovered, self._requests, self._in_flight > 0)
            act = self._take_misbehaviour() if admitted else self._refuse_in_time()
            self._requests += 1
            self._in_flight += 1
            self._busiest = max(self._busiest, self._in_flight)
            self._seen.append(request)
            self._changed.notify_all()
        exchange = Exchange(connection, request, moment)
        try:
            exchange.wait(self.serving.latency)
            act(exchange)
        finally:
            with self._changed:
                self._in_flight -= 1
                self._answers += 1
                self._changed.notify_all()
        return exchange

    def _refuse_in_time(self) -> Act:
        sleep = self.serving.auth_sleep * 2 ** min(self._failures, _MOST_DOUBLINGS)
        self._failures += 1
        return partial(MISBEHAVIOURS["unauthorized"], sleep=sleep)

    def _take_misbehaviour(self) -> Act:
        incident = self._incident
        if incident is None:
            return _behave
        if incident.left is not None:
            incident.left -= 1
            if not incident.left:
                self._incident = None
        return incident.act

    def _admits(self, request: MetricsRequest) -> bool:
        if self.serving.password is None:
            return True
        wanted = b64encode(f"{self.serving.username}:{self.serving.password}".encode()).decode()
        given = request.headers.get("authorization", "")
        if hmac.compare_digest(given.encode(), f"Basic {wanted}".encode()):
            self._failures = 0
            return True
        return False

    def _health(self, exchange: Exchange) -> None:
        body = UNHEALTHY.get(self.misbehaviour or "")
        if body is None:
            exchange.answer(b"OK", kind=HTML)
        elif body:
            exchange.answer(body, 500, HTML)
        else:
            exchange.daemon_down_page()

    def _control(self, exchange: Exchange) -> None:
        method = exchange.request.method
        name = exchange.request.path.removeprefix(CONTROL).strip("/")
        if method == "POST":
            try:
                with self._turning:  # a call makes the next node of the one before
                    control.call(self, name, exchange.request.body)
            except control.ControlError as error:
                exchange.answer_json({"error": str(error)}, 400)
                return
            exchange.answer_json(self.state())
        elif method == "GET" and name in ("", "help"):
            exchange.answer_json(control.describe() if name else self.state())
        else:
            exchange.answer_json({"error": "GET /control, GET /control/help, POST a call"}, 405)


def _behave(exchange: Exchange) -> None:
    exchange.answer(exchange.body)


def _read(connection: socket.socket, reader: RequestReader) -> MetricsRequest | None:
    """Read one request, or None at the end of the connection; raises `ValueError` for no HTTP."""
    line = reader.readline(MOST_HEAD + 1)
    if not line.strip():
        return None
    reader.allow()
    headers = parse_headers(BytesIO(_rest_of_head(reader, len(line))))
    length = int(headers.get("Content-Length") or 0)
    if not 0 <= length <= _LONGEST_BODY:
        raise ValueError(f"a body of {length} bytes")
    request = MetricsRequest.of(line, headers, reader.read(length))
    connection.settimeout(TIMEOUT)  # for each piece of the answer that is sent
    return request


def _rest_of_head(reader: RequestReader, size: int) -> bytes:
    """Read on to the empty line; `size` bytes were read. Raises `ValueError` where it is long."""
    lines: list[bytes] = []
    while size <= MOST_HEAD:
        line = reader.readline(MOST_HEAD - size + 1)
        lines.append(line)
        size += len(line)
        if not line.strip(b"\r\n"):
            return b"".join(lines)
    raise ValueError(f"a request has at most {MOST_HEAD} bytes of headers")
