"""Runs the small job on a disk that is too small for it, then on one with more room, until there is enough.

unshare --user --map-root-user --mount python -m tests.chaos.full_disk REFERENCE --seed 1

REFERENCE is an undisturbed run of `tests.chaos.job`. The disk is in memory, in a namespace of this process.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.job import Job, find_difference, fingerprint

FULL = 3
"""Exit status of a run whose disk is full."""


def mount(directory: Path, size: int, *, again: bool = False) -> None:
    """Mount a disk in memory of so many bytes, or change its size."""
    options = f"{'remount,' if again else ''}size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=True)


def main(arguments: Sequence[str]) -> int:
    """Fill the disk as often as the command line says; return an exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    draw, problems = random.Random(options.seed), 0
    size = sum(file.stat().st_size for file in options.reference.rglob("*") if file.is_file())
    with tempfile.TemporaryDirectory() as scratch:
        disk = Path(scratch) / "disk"
        disk.mkdir()
        sizes = [int(size * share) for share in sorted(draw.uniform(0.02, 0.9) for _ in range(options.times))]
        for n, limit in enumerate([*sizes, 4 * size + 2**26]):
            mount(disk, limit, again=n > 0)
            job = Job(disk / "run", Path(scratch) / "log")
            status = job.wait(1200)
            line = job.output.strip().rpartition("\n")[2]
            enough = n == len(sizes) or status == 0
            told = status == 0 if enough else status == FULL and "disk" in line.lower()
            noise = job.noise()
            problems += not told or noise is not None
            print(
                json.dumps({"bytes": limit, "stage": job.stage, "status": status, "line": line[:300], "noise": noise})
            )
        difference = find_difference(fingerprint(options.reference), fingerprint(disk / "run"))
        problems += difference is not None
        print(json.dumps({"times": options.times, "difference": difference, "problems": problems}), flush=True)
        subprocess.run(["umount", str(disk)], check=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
