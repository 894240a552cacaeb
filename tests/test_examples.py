"""Every example runs by itself and shows that something was learned."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_what_it_prints_improves(path, tmp_path):
    """Where it prints a number "before" and one "after", the latter is higher."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d", done.stdout), "it prints a number"
    for before, percent, after in re.findall(r"([\d.]+)(%?) before, ([\d.]+)%? after", done.stdout):
        assert float(after) > float(before) + (5 if percent else 0.1), done.stdout
