"""Fixtures of the tests of core."""

import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cases():
    """The module of small methods, and of what several ranks run."""
    sys.path.insert(0, str(Path(__file__).parent))  # ranks.py is imported by its name in the processes too
    try:
        importlib.import_module("toys")
        return importlib.import_module("ranks")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="session")
def toys(cases):
    """The module of short trainings that go well, or collapse."""
    return importlib.import_module("toys")


@pytest.fixture(scope="session")
def ranks(cases):
    """Three processes that run checks together; started once."""
    started = cases.Ranks(3)
    yield started
    started.close()
