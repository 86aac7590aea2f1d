import re

import pytest

from conftest import ROOT, run_script


def figures(output, title):
    """The rows below a heading: name, median without its unit, ratio."""
    text = output.split(f"## {title}", 1)[1].split("## ", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")][2:]
    return [(row[0], float(row[1].split()[0]), row[3] if len(row) > 3 else "") for row in rows]


def test_run_prints_a_table_with_numbers():
    before = (ROOT / "docs" / "benchmarks.md").read_bytes() if (ROOT / "docs" / "benchmarks.md").exists() else None
    result = run_script("benchmarks/run.py", "--quick", "--only", "subsampler", "window", ok=0)
    for title, least in (("The random neighbour sub-sampler", 2), ("Working memory of one window", 1)):
        rows = figures(result.stdout, title)
        assert len(rows) >= least
        assert all(median > 0 for _, median, _ in rows)
        assert any(re.fullmatch(r"\*\*[\d.]+\*\*", ratio) for _, _, ratio in rows)
    # A part of the benchmarks is no reason to replace what a whole run has written.
    after = (ROOT / "docs" / "benchmarks.md").read_bytes() if before is not None else None
    assert after == before


def test_the_document_tells_command_machine_and_versions(tmp_path):
    target = tmp_path / "bench.md"
    result = run_script(
        "benchmarks/run.py", "--quick", "--only", "dataset_tool", "--rounds", 1, "--output", target, ok=0
    )
    text = target.read_text()
    for word in ("make bench", "--only dataset_tool", "cores", "GiB", "paddle 3.", "python 3.", "numpy"):
        assert word in text
    assert "Images per second: published: " in text
    assert len(figures(result.stdout, "Preparing training images")) == 7


@pytest.mark.parametrize("flags", [["--only", "everything"], ["--images", "/nowhere"], ["--quik"]])
def test_refuses_what_it_does_not_know(flags):
    result = run_script("benchmarks/run.py", *flags)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
