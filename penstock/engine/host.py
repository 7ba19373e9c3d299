"""What this host lets us use: cores and memory, as containers limit them. Knows nothing of models."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use: its affinity, and a container's quota, of which parts of a core do not count."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    return max(1, min(count, int(quota) // int(period))) if quota.isdigit() else count


def free_bytes(cgroup: Path = _CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that can still be taken without swapping; half of all there is where the system does not say."""
    lines = dict(line.split(":", 1) for line in _read(meminfo).splitlines())
    if "MemAvailable" in lines:
        free = int(lines["MemAvailable"].split()[0]) << 10
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    return max(0, min(free, int(limit) - int(used))) if limit.isdigit() and used.isdigit() else free


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
