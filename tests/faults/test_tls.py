"""Only the right certificate is spoken to; each refusal names its reason, and labels stand.

The certificates are those of `tests/sidecar`, where one scrape meets each; here a sidecar that runs
meets them one after the other, as they rotate beneath it.
"""

import re
import socket
import ssl
import warnings
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from threading import Thread

import pytest

from tests.faults.rig import Sidecar, sidecar, truth
from tests.patience import PATIENCE
from tests.xpu_manager.test_tls_rotation import replaced
from tests.xpu_manager.test_tls_servers import ACCEPTED, CA, HERE, REFUSED, Authority, written
from xelink.simulators.xpu_manager import Serving, Simulator, listener

RIGHT = CA.issue(HERE)


class Site:
    """What the operator keeps in files: the server's certificate and key, and whom we trust."""

    def __init__(self, folder: Path) -> None:
        self.cert = written(folder, "tls.crt", RIGHT)
        self.key = written(folder, "tls.key", RIGHT)
        self.trust = written(folder, "ca.crt", CA.pem)
        self.features_d = folder / "features.d"
        self.features_d.mkdir()

    def simulator(self, port: int = 0) -> Simulator:
        """Serve, with a new connection for each scrape."""
        serving = Serving(port=port, cert=self.cert, key=self.key, keep_alive=0.05)
        return Simulator(truth(4), serving)

    def serve(self, served: bytes, trusted: bytes) -> None:
        """Put files in place, the trust last: until then what is refused is refused for another."""
        replaced(self.key, served)
        replaced(self.cert, served)
        replaced(self.trust, trusted)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def told(daemon: Sidecar, detail: str) -> None:
    """Wait for this refusal; what comes while files change, or a server does, may come before."""
    line = ""
    while not re.search(detail, line):
        line = daemon.process.wait_for("no usable answer: the published labels stay")
        assert re.search("reason=(tls|refused|reset) ", line), line
    assert "reason=tls " in line


def test_only_what_is_right_is_scraped_and_each_refusal_names_its_reason(site: Site) -> None:
    with (
        site.simulator() as xpum,
        sidecar(xpum.port, site.features_d, f"-cert={site.trust}") as daemon,
    ):
        first = daemon.content()
        accepted = iter(ACCEPTED.items())
        for (served, trusted), detail in REFUSED.values():
            site.serve(served, trusted)
            told(daemon, detail)
            asked = xpum.requests
            daemon.wait_for_scrapes(lambda more: more["tls"] >= 1)
            assert xpum.requests == asked  # who is not the right one is asked nothing
            assert daemon.content() == first
            name, right = next(accepted, ("its CA", (RIGHT, CA.pem)))
            site.serve(*right)
            assert "result=links" in daemon.process.wait_for("scrape result changed"), name
            assert xpum.requests > asked
            assert daemon.content() == first
        assert next(accepted, None) is None
        daemon.expects(xpum)
        daemon.is_bounded()


@pytest.mark.parametrize("order", [*permutations(("cert", "key", "trust"))], ids="-".join)
def test_a_rotation_in_any_order_of_files_costs_no_label(
    site: Site, order: tuple[str, ...]
) -> None:
    authority = Authority("another CA")
    new = {"cert": authority.issue(HERE), "trust": authority.pem}
    new["key"] = new["cert"]
    with (
        site.simulator() as xpum,
        sidecar(xpum.port, site.features_d, f"-cert={site.trust}") as daemon,
    ):
        first, refused = daemon.content(), False
        for number, what in enumerate(order, start=1):
            replaced(getattr(site, what), new[what])
            served_new = {"cert", "key"} <= {*order[:number]}
            if ("trust" in order[:number]) is served_new:
                xpum.wait_for_request(xpum.requests + 2)
                refused = False
            elif not refused:
                told(daemon, "does not contain")
                refused = True
            assert daemon.content() == first
        daemon.expects(xpum)


def test_plaintext_on_the_tls_port_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        site.simulator() as xpum,
        sidecar(xpum.port, site.features_d, f"-cert={site.trust}") as daemon,
    ):
        first = daemon.content()
        xpum.close()
        with (
            monkeypatch.context() as impatient,
            Simulator(truth(4), Serving(port=xpum.port)) as plain,
        ):
            impatient.setattr(listener, "TIMEOUT", 0.5)  # it waits for the end of a line
            told(daemon, "HTTPS on this")
            assert plain.requests == 0
        assert daemon.content() == first
        with site.simulator(xpum.port) as healed:
            daemon.expects(healed)


class OldServer:
    """Speaks TLS 1.1 at most, on a port that is known."""

    def __init__(self, port: int, pair: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what is tested is deprecated
            self._context.set_ciphers("ALL:@SECLEVEL=0")
            self._context.minimum_version = ssl.TLSVersion.TLSv1_1
            self._context.maximum_version = ssl.TLSVersion.TLSv1_1
        self._listener = socket.create_server(("127.0.0.1", port))
        self._thread = Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(PATIENCE)
                self._context.wrap_socket(connection, server_side=True).close()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def test_tls_1_1_alone_is_told(site: Site, tmp_path: Path) -> None:
    pair = written(tmp_path, "pair.pem", RIGHT)
    with (
        site.simulator() as xpum,
        sidecar(xpum.port, site.features_d, f"-cert={site.trust}") as daemon,
    ):
        first = daemon.content()
        xpum.close()
        try:
            old = OldServer(xpum.port, pair)
        except (ValueError, ssl.SSLError) as lacking:
            pytest.skip(f"this OpenSSL cannot serve TLS 1.1: {lacking}")
        with old:
            told(daemon, "TLS 1.2 or later")
        assert daemon.content() == first
        with site.simulator(xpum.port) as healed:
            daemon.expects(healed)
