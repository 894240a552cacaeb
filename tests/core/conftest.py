"""Fixtures of the tests of core."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cases():
    """The module of small methods, and of what several ranks run."""
    if "ranks" not in sys.modules:
        spec = importlib.util.spec_from_file_location("ranks", Path(__file__).with_name("ranks.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules["ranks"] = module
        spec.loader.exec_module(module)
    return sys.modules["ranks"]


@pytest.fixture(scope="session")
def ranks(cases):
    """Three processes that run checks together; started once."""
    started = cases.Ranks(3)
    yield started
    started.close()
