"""Fixtures of the tool's tests."""

from tests.cli.commands import xelink

__all__ = ["xelink"]
