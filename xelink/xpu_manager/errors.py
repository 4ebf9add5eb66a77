"""The errors of a scrape. Pure."""

from xelink.topology.text import printable
from xelink.xpu_manager.reasons import ScrapeReason


class ScrapeError(Exception):
    """XPU Manager gave no usable answer: what is published stays."""

    def __init__(self, reason: ScrapeReason, detail: str) -> None:
        detail = printable(detail)
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
