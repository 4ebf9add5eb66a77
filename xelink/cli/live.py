"""One scrape of a live XPU Manager, with the sidecar's own scraper."""

import argparse
import signal
import time
from urllib.parse import urlsplit

from xelink.cli.exit_codes import WrongCallError
from xelink.daemon.stopping import Stop, Stopped
from xelink.daemon.version import VERSION
from xelink.xpu_manager.errors import ScrapeError
from xelink.xpu_manager.exposition import Exposition
from xelink.xpu_manager.scrape import HOST, Credentials, Scraper, ScrapeTarget
from xelink.xpu_manager.tls import TlsFiles
from xelink.xpu_manager.wording import Options, words

__all__ = ["HOST", "OPTIONS", "PORT", "TIMEOUT", "NoAnswerError", "scrape", "target"]

PORT = 29999
OPTIONS = Options(HOST, "--", "--url")
"""What the user of the tool sets a scrape with."""
TIMEOUT = 30.0


class NoAnswerError(Exception):
    """XPU Manager gave no usable answer: the node is unknown."""


def target(options: argparse.Namespace) -> ScrapeTarget:
    """Return where to scrape and how. Raises `WrongCallError`."""
    try:
        url = urlsplit(options.url)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise WrongCallError(f"--url {options.url}: {error}") from error
    if url.scheme not in {"http", "https"} or not host or url.path not in {"", "/", "/metrics"}:
        raise WrongCallError(f"--url {options.url}: give http://HOST:PORT or https://HOST:PORT")
    if url.username is not None or url.query or url.fragment:
        raise WrongCallError("--url: give only host and port, and use --username")
    if (url.scheme == "https") != bool(options.cert):
        raise WrongCallError("https:// and --cert need each other")
    if options.client_cert and not options.cert:
        raise WrongCallError("--client-cert needs --cert")
    if options.client_key and not options.client_cert:
        raise WrongCallError("--client-key needs --client-cert")
    if bool(options.username) != bool(options.password_file):
        raise WrongCallError("--username and --password-file need each other")
    tls = TlsFiles(options.cert, options.client_cert, options.client_key) if options.cert else None
    credentials = (
        Credentials(options.username, options.password_file) if options.password_file else None
    )
    timeout = options.timeout or TIMEOUT
    return ScrapeTarget(port or PORT, tls, credentials, timeout, host=host)


def scrape(target: ScrapeTarget) -> Exposition:
    """Scrape once, within the target's timeout, whatever hangs; Ctrl-C ends it.

    Raises `NoAnswerError`.
    """
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop.install()

    def sleep(seconds: float) -> None:
        stop.wait(seconds)

    scraper = Scraper(
        target,
        bounded=stop.bounded,
        sleep=sleep,
        monotonic=time.monotonic,
        user_agent=f"xelink/{VERSION}",
    )
    try:
        return scraper.scrape()
    except ScrapeError as error:
        what = words(error, OPTIONS._replace(host=target.host))
        raise NoAnswerError(f"{error.reason}: {what}") from error
    except Stopped:
        raise KeyboardInterrupt from None
    finally:
        scraper.close()
        stop.close()
        for number, handler in before.items():
            signal.signal(number, handler)
