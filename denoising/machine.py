"""What this machine offers: cores, memory, the processor and its instructions. Some of it is known on Linux only."""

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")  # where a container's limits stand


def cores():
    """How many of the machine's cores this process may use, or as many as a container's share of time is worth."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # not Linux, or no limit ("max")
        quota, period = map(int, (GROUP / "cpu.max").read_text().split())
        count = min(count, max(1, -(-quota // period)))
    return count


def _cpu_facts():
    """The fields of the first processor in /proc/cpuinfo, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in reversed(lines) if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def cpu_name():
    """The processor's name."""
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_flags():
    """The instruction sets of this processor, as Linux names them."""
    return _cpu_facts().get("flags", "").split()


def adds_bytes_exactly():
    """Whether this CPU has instructions for sums of 8-bit products; ARM has, and what does not tell is believed."""
    flags = cpu_flags()
    return not flags or bool({"avx512_vnni", "avx_vnni"} & set(flags))


def free_memory():
    """Bytes that can be taken now: the machine's, or what a container's limit leaves."""
    free = 4 << 30
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
        limit, used = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        # Files in the page cache count as used, but are dropped when memory is asked for.
        statistics = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(statistics["inactive_file"]))
    except (OSError, ValueError, KeyError, StopIteration):
        pass  # not Linux, or no limit ("max"): what is known so far
    return max(free, 64 << 20)


def trim_memory():
    """Gives back to the system what the C library keeps of freed memory, where it is one that can."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def used_memory(key="VmRSS", process="self"):
    """A memory figure of a process in bytes, by its name in /proc/PROCESS/status; NaN where there is none."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def peak_memory():
    """The most memory that this process ever had, in bytes; what it was before a fork or exec counts."""
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
