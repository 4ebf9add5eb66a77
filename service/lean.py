"""Imports that a daemon does without."""

import sys


def leave_out(*modules: str) -> None:
    """Make modules look as if they were not installed.

    structlog and httpx take whatever they find for tracebacks and command lines of their own. A
    daemon needs none of it, and it takes 5 MB and a tenth of its time to start.
    """
    for module in modules:
        sys.modules[module] = None  # type: ignore[assignment] # what makes an import fail
