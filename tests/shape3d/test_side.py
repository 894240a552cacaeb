"""Work side by side: in order, and nothing of it outlives who asked for it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from partwhole.shape3d.side import _alone, side_by_side


def test_one_process_works_as_results_are_asked_for():
    done = []
    results = side_by_side(lambda i: done.append(i) or -i, [1, 2, 3], processes=1)
    assert next(results) == -1
    assert done == [1]
    assert list(results) == [-2, -3]


def test_nothing_to_do_is_done():
    assert list(side_by_side(str, [], processes=4)) == []


def test_work_that_stays_in_the_asking_process_does_not_end_it():
    """As in a worker of another pool, which may start no processes of its own."""
    before = threading.active_count(), torch.get_num_threads()
    assert _alone(str, 1, os.getpid()) == "1"
    assert (threading.active_count(), torch.get_num_threads()) == before


PARENT = """
import os, time
from partwhole.shape3d.side import side_by_side

def work(item):
    os.write(1, f"{os.getpid()}\\n".encode())  # in one piece: two workers write at once
    time.sleep(0 if item < 2 else 600)
    return item

if __name__ == "__main__":
    list(side_by_side(work, range(4), 2))
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_asked(tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            workers = {int(parent.stdout.readline()) for _ in range(4)}
            assert all(map(alive, workers))
            os.kill(parent.pid, number)
            parent.wait(30)
            until = time.monotonic() + 30
            while any(map(alive, workers)) and time.monotonic() < until:
                time.sleep(0.1)
            assert not any(map(alive, workers))
        finally:
            parent.kill()
