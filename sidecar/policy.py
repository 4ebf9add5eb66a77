"""How what is observed becomes what is published."""

from dataclasses import dataclass, field
from datetime import timedelta

from xelink.topology.publication import DEFAULT_NAMESPACE
from xelink.topology.rules import Rules


@dataclass(frozen=True)
class Policy:
    """How what is observed becomes what is published."""

    rules: Rules = field(default_factory=Rules)
    confirmations: int = 2
    namespace: str = DEFAULT_NAMESPACE
    summary: bool = True
    life: timedelta = timedelta(seconds=300)
    """How long the labels live unless they are renewed; zero: for ever."""
