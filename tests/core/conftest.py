"""Fixtures of the tests of core."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for miniatures.py, and ranks.py, which the processes import too


@pytest.fixture(scope="session")
def cases():
    """The module of small methods, and of what several ranks run."""
    return importlib.import_module("ranks")


@pytest.fixture(scope="session")
def ranks(cases):
    """Four processes that run checks together; started once."""
    started = cases.Ranks(4)
    yield started
    started.close()
