"""Time that a test may hold to a budget: of this thread only, so that other work on the machine does not count."""

from __future__ import annotations

import time
from collections.abc import Callable


def cpu_s(work: Callable[[], object], runs: int = 3) -> float:
    """Return the seconds of CPU that `work` takes in the calling thread: the least of `runs`.

    The least, because what interrupts a run (garbage collection of a long test process, a cold cache) only adds: on a
    shared machine one run of 0.2 s was once measured as 1.5 s.
    """
    taken_s = []
    for _ in range(runs):
        started_s = time.thread_time()
        work()
        taken_s.append(time.thread_time() - started_s)
    return min(taken_s)


def growth(work: Callable[[int], object], size: int, runs: int = 2) -> float:
    """Return how many times longer `work(2 * size)` takes than `work(size)`: about 2 in linear time, 4 in quadratic."""
    work(size // 10)  # what is loaded at the first call
    return cpu_s(lambda: work(2 * size), runs) / max(cpu_s(lambda: work(size), runs), 0.005)
