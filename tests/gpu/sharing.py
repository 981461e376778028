"""Three processes on one card that load as experts do, counted by vLLM 0.29's formula: side by side, and in turns."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from tests.gpu.figures import Check

_LOADS = """
import sys, time, torch
from contextlib import nullcontext
from pathlib import Path
from carevl.models.engines.card import start_alone
number, share, gib, lock = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.cuda.init()
time.sleep(0.1 * number)
with start_alone(["0"], Path(lock)) if lock else nullcontext():
    def weights():
        parts = []
        for _ in range(gib):
            parts.append(torch.empty(2**29, dtype=torch.bfloat16, device="cuda"))
            time.sleep(0.06)
        return parts
    reference = weights(); time.sleep(0.5 + 0.5 * number); del reference; torch.cuda.empty_cache()
    free_before, total = torch.cuda.mem_get_info()
    engine = weights()
    free_after, _ = torch.cuda.mem_get_info()
    requested = share * total
    print("assert" if free_after > free_before else (requested - (free_before - free_after)) / 2**30, flush=True)
time.sleep(6)
"""


def run(check: Check) -> None:
    """Write the cache that each of the three would get, in GiB: alike in turns, anything side by side."""
    if not check.on_gpu:
        return
    for way in ("side by side", "in turns"):
        with tempfile.TemporaryDirectory() as locks:
            arguments = ["0.297", "14", locks if way == "in turns" else ""]
            loads = [
                subprocess.Popen([sys.executable, "-c", _LOADS, str(n), *arguments], stdout=subprocess.PIPE, text=True)
                for n in range(3)
            ]
            left = [load.communicate()[0].strip() for load in loads]
        caches = [float(value) if value and value != "assert" else None for value in left]
        spread = None if None in caches else max(caches) - min(caches)  # type: ignore[type-var]
        check.figure("cache_spread_gib", spread, most=1.0 if way == "in turns" else None, way=way, caches=left)
