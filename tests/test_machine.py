"""What a machine offers, and what a container's limits leave of it."""

import pytest

from denoising import machine


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 3), ("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 3)]
)
def test_a_share_of_time_counts_as_so_many_cores(tmp_path, monkeypatch, limit, expected):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {0, 1, 5}, raising=False)
    monkeypatch.setattr(machine, "GROUP", tmp_path)
    assert machine.cores() == 3
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert machine.cores() == expected


def test_a_limit_of_memory_leaves_what_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "GROUP", tmp_path)
    for name, value in (("memory.max", 300 << 20), ("memory.current", 200 << 20)):
        (tmp_path / name).write_text(f"{value}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {50 << 20}\n")
    assert machine.free_memory() == 150 << 20
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory() != 150 << 20
