"""`make bench`: figures of all benchmarks in one file, and the ones that failed by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

RUNNER = Path(__file__).with_name("run_all.py")
GOOD = """
import json
print("about to measure")
print(json.dumps({"figure": "speed", "value": 2.0, "unit": "rows/s", "peer": "other", "ratio": 1.5, "goal": 1.2}))
print("{'loss': 1.0}")
"""
BAD = GOOD + "raise SystemExit(3)\n"


def _run(directory, *names):
    command = [sys.executable, str(RUNNER), "--benches", str(directory), "--out", str(directory / "out.json"), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, json.loads((directory / "out.json").read_text())["benchmarks"]


def test_figures_are_written_though_one_benchmark_fails(tmp_path):
    (tmp_path / "bench_bad.py").write_text(BAD)
    (tmp_path / "bench_good.py").write_text(GOOD)
    done, written = _run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("failed: bad;")
    assert {name: found["exit_status"] for name, found in written.items()} == {"bad": 3, "good": 0}
    assert [figure["figure"] for figure in written["good"]["figures"]] == ["speed"]
    assert len(written["bad"]["figures"]) == 1
    assert written["good"]["machine"].keys() == {"cpu", "cores", "memory_gib", "load_average", "python", "versions"}
    (tmp_path / "bench_bad.py").write_text(GOOD)
    again, mended = _run(tmp_path, "bad")
    assert again.returncode == 0
    assert mended["bad"]["exit_status"] == 0
    assert mended["good"] == written["good"]
