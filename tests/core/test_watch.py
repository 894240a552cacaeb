"""The remaining time belongs to one piece of work."""

import time

from partwhole.core.watch import Remaining, duration


def test_another_total_starts_another_estimate(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    left = Remaining()
    assert left(1, 96) == ""
    clock[0] = 950.0
    assert left(96, 96) == ""
    clock[0] = 1000.0
    assert left(10, 400) == ""  # training begins: nothing is known, and the minutes before are not its pace
    clock[0] = 1010.0
    assert left(20, 400) == duration(380.0)


def test_a_count_that_falls_starts_another_estimate(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    left = Remaining()
    for done in (1, 2, 50):
        clock[0] += 1
        left(done, 100)
    clock[0] += 100
    assert left(1, 100) == ""
    clock[0] += 2
    assert left(2, 100) == duration(2 * 98)


def test_durations_are_words():
    assert [duration(s) for s in (45, 200, 7500)] == ["45 s", "3 min 20 s", "2 h 05 min"]
