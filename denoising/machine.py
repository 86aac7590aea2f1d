"""What this machine grants: cores, memory, the processor's instructions."""

import os
from pathlib import Path


def cores():
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_flags():
    """The instruction sets of this CPU, as Linux names them; nothing where it does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return next((line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), [])


def free_memory():
    """Bytes that can be taken now: the machine's, or what a container's limit leaves."""
    free = 4 << 30
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        # Files in the page cache count as used, but are dropped when memory is asked for.
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(statistics["inactive_file"]))
    except (OSError, ValueError, KeyError, StopIteration):
        pass  # not Linux, or no limit ("max"): what is known so far
    return max(free, 64 << 20)
