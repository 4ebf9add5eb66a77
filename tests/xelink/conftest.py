"""Fixtures of the tool's tests."""

from tests.xelink.commands import xelink

__all__ = ["xelink"]
