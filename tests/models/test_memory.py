"""The memory that is free, of a machine and of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from carevl.models.memory import free_main_memory

MIB = 2**20


def _write(root: Path, **files: object) -> None:
    for name, content in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 8 GiB free, of 16."""
    kilobytes = 2**20
    memory = f"MemTotal: {16 * kilobytes} kB\nMemFree: 100 kB\nMemAvailable: {8 * kilobytes} kB"
    _write(tmp_path, proc__meminfo=memory, proc__self__cgroup="0::/")
    return tmp_path


def test_without_control_groups_it_is_what_the_machine_has(root):
    assert free_main_memory(root) == 8192 * MIB
    assert free_main_memory() > 0


@pytest.mark.parametrize(
    ("inner", "outer", "free"), [("max", "max", 8192), (1000 * MIB, "max", 450), ("max", 500 * MIB, 250)]
)
def test_a_control_group_and_those_around_it_limit_it(inner, outer, free, root):
    _write(root, proc__self__cgroup="0::/jobs/one")
    statistics = f"anon {600 * MIB}\nactive_file {20 * MIB}\ninactive_file {30 * MIB}"
    for directory, limit, in_use in (("jobs", outer, 300), ("jobs/one", inner, 600)):
        group = root / "sys/fs/cgroup" / directory
        group.mkdir(parents=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{in_use * MIB}\n")
        (group / "memory.stat").write_text(statistics)
    assert free_main_memory(root) == free * MIB


def test_so_does_one_of_version_1_whose_path_is_that_on_its_host(root):
    _write(root, proc__self__cgroup="5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/")
    group = root / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{2048 * MIB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{1024 * MIB}\n")
    (group / "memory.stat").write_text(f"cache 5\ntotal_active_file {MIB}\ntotal_inactive_file {3 * MIB}\n")
    assert free_main_memory(root) == 1028 * MIB
