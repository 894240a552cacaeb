"""A campaign of kill -9: every method in turn is killed at random moments of its training, then trained to the end.

    python tests/core/kills.py 50 [seed]

The weights must be those of a training that nobody killed, bit for bit; no metrics may be missing or doubled, and no
half-written file may be left. Processes are forked, so that torch is imported once.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from zoo import GENERIC, make

from partwhole.core.fit import Fit, Run, fit
from partwhole.core.watch import Quiet

STEPS = 12
TIMING = ("steps_per_second", "memory_mb", "waiting")


def train(name, folder, pause=0.0):
    """Weights after training; ``pause`` seconds are lost in every step."""
    method, stream = make(name)

    def slowly(start=0):
        for batch in stream(start):
            time.sleep(pause)
            yield batch

    fit(Run(method=method, stream=slowly), Fit(steps=STEPS, save_every=2, log_every=1, lr=1e-2), folder, watch=Quiet())
    return method.state_dict()


def told(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def kill(name, folder, after):
    """Train in a process that is killed after so many seconds; whether it was still running."""
    child = os.fork()
    if child == 0:
        try:
            train(name, folder, pause=0.02)
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def campaign(count, seed=0):
    """What went wrong, in words; and how many were killed while they ran."""
    torch.set_num_threads(1)
    draw, wrong, killed = random.Random(seed), [], 0
    with tempfile.TemporaryDirectory() as place:
        for i in range(count):
            name = GENERIC[i % len(GENERIC)]
            whole, cut = Path(place) / name, Path(place) / f"{name}-{i}"
            began = time.monotonic()
            expected = train(name, whole)
            alone = time.monotonic() - began
            for _ in range(2):  # the second time on what the first has left
                killed += kill(name, cut, draw.uniform(0, alone + 0.02 * STEPS))
            got = train(name, cut)
            if not (got.keys() == expected.keys() and all(torch.equal(got[k], expected[k]) for k in got)):
                wrong.append(f"{name}: other weights")
            if told(cut) != told(whole):
                wrong.append(f"{name}: other metrics")
            if left := sorted(p.name for p in cut.iterdir() if p.name not in ("last.pt", "metrics.jsonl")):
                wrong.append(f"{name}: left {left}")
    return wrong, killed


if __name__ == "__main__":
    wrong, killed = campaign(int(sys.argv[1]), *map(int, sys.argv[2:3]))
    told_so = "\n".join(wrong) or f"all as if nobody had killed them; {killed} of {2 * int(sys.argv[1])} were running"
    sys.stdout.write(f"{told_so}\n")
    sys.exit(bool(wrong))
