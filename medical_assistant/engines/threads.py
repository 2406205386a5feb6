"""How many threads a model on a CPU gets."""

from __future__ import annotations

import os
from pathlib import Path


def choose_threads(gguf: Path) -> int:
    """Return the threads for a model: the usable cores, less one for the page when the model is small.

    llama.cpp's threads meet several hundred times a token; one that waits for its core holds up all.
    The 135M model on two cores, with 1 and with 2 threads: 138 and 165 tokens/s on a quiet machine,
    145 and 53 beside one busy process, 90 and 10 beside two. Large models gain more from the core.
    """
    small = gguf.is_file() and gguf.stat().st_size < 500_000_000  # bytes
    return max(1, usable_cores() - small)


def usable_cores() -> int:
    """Return the cores this process may use: `CPU_CORES` (set by Spaces), the container's quota, or affinity."""
    if os.environ.get("CPU_CORES", "").isdigit():
        return max(1, int(os.environ["CPU_CORES"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        # cgroup v2, kernel documentation admin-guide/cgroup-v2: "$MAX $PERIOD" in microseconds
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, round(int(quota) / int(period)))
    except (OSError, ValueError):  # not Linux, or "max": no limit
        pass
    return max(1, cores)
