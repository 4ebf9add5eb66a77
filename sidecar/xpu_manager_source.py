"""XPU Manager as the source, made from the settings: loads HTTP, and TLS where it is used."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from xelink.daemon.stopping import Stop
from xelink.daemon.version import VERSION
from xelink.topology.observation import Source
from xelink.topology.rules import Rules
from xelink.xpu_manager.scrape import HOST, Credentials, Scraper, ScrapeTarget
from xelink.xpu_manager.source import XpuManagerSource
from xelink.xpu_manager.tls import TlsFiles
from xelink.xpu_manager.wording import Options

if TYPE_CHECKING:
    from sidecar.settings import SidecarSettings

OPTIONS = Options(HOST, "-", "-xpum-port", max_body="-max-body", asks_again=True)
"""What the sidecar's user sets a scrape with."""


@contextmanager
def xpu_manager(settings: "SidecarSettings", rules: Rules, stop: Stop) -> Iterator[Source]:
    """Hold XPU Manager's exporter on this node as the source; a signal ends its waits."""

    def sleep(seconds: float) -> None:
        stop.wait(seconds)

    target = ScrapeTarget(
        settings.xpum_port,
        tls=TlsFiles(settings.cert, settings.client_cert, settings.client_key)
        if settings.cert
        else None,
        credentials=Credentials(settings.username, settings.password_file)
        if settings.password_file
        else None,
        timeout=settings.timeout,
        max_body=settings.max_body,
    )
    scraper = Scraper(
        target,
        bounded=stop.bounded,
        sleep=sleep,
        monotonic=time.monotonic,
        user_agent=f"{settings.PROGRAM}/{VERSION}",
    )
    with closing(scraper):
        yield XpuManagerSource(scraper, rules, OPTIONS)
