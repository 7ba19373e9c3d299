"""Limits of containers are heeded."""

import os
from pathlib import Path

from penstock.engine.host import cores, free_bytes


def cgroup(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text + "\n")
    return folder


def test_cores(tmp_path: Path) -> None:
    all_ = len(os.sched_getaffinity(0))
    assert cores(tmp_path / "nothing") == all_
    assert cores(cgroup(tmp_path, cpu_max="max 100000")) == all_
    assert cores(cgroup(tmp_path, cpu_max="100000 100000")) == 1
    assert cores(cgroup(tmp_path, cpu_max="50000 100000")) == 1
    assert cores(cgroup(tmp_path, cpu_max=f"{100000 * (all_ + 3)} 100000")) == all_


def test_free_bytes(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       8000 kB\nMemAvailable:   5000 kB\n")
    assert free_bytes(tmp_path, meminfo) == 5000 << 10
    assert free_bytes(cgroup(tmp_path, memory_max="max", memory_current="7"), meminfo) == 5000 << 10
    assert free_bytes(cgroup(tmp_path, memory_max="3000000", memory_current="1000000"), meminfo) == 2000000
    assert free_bytes(cgroup(tmp_path, memory_max="10", memory_current="20"), meminfo) == 0
    assert free_bytes(tmp_path / "nothing", tmp_path / "nothing") > 1 << 20
