"""Which source a user asked for."""

from enum import Enum


class SourceChoice(Enum):
    """Who reports the Xe Links."""

    XPUM = "xpum"
    DRIVER = "driver"
    AUTO = "auto"
