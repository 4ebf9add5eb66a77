"""Logs: one line per change on standard error, facts as keys, as text or as JSON."""

import logging
import sys
from enum import Enum
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor


class LogFormat(Enum):
    """How a log line is written."""

    TEXT = "text"
    JSON = "json"


def logger_to_stderr(log_format: LogFormat, *, debug: bool = False) -> "FilteringBoundLogger":
    """Make the process's logger: `event key=value ...` as text, or one JSON object a line."""
    renderer: Processor
    if log_format is LogFormat.JSON:
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "event"], drop_missing=True
        )
    level = logging.DEBUG if debug else logging.INFO
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    return logger


class Changes:
    """Remembers what was said last, so that each thing is said when it changes, once."""

    def __init__(self) -> None:
        self._last: dict[str, object] = {}

    def of(self, topic: str, value: object) -> bool:
        """Tell whether `value` is news; None, at first, is none."""
        changed = self._last.get(topic) != value
        self._last[topic] = value
        return changed
