"""What the steps of the GPU check share: where they compute, how they time, and the lines that they write."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

START = time.monotonic()


@dataclass
class Check:
    """A check at work: `small` sizes run on a CPU; figures out of their bounds are kept in `failures`."""

    small: bool
    failures: list[str] = field(default_factory=list)

    @property
    def device(self) -> str:
        """Where the steps compute."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def on_gpu(self) -> bool:
        """Whether that is a GPU."""
        return self.device == "cuda"

    def figure(self, name: str, value: float | None, *, most: float | None = None, **facts: Any) -> None:
        """Write a figure as a line of JSON; one above `most`, or that is no number, fails the check."""
        rounded = None if value is None else float(f"{value:.4g}")
        line = {"figure": name, "value": rounded, **({} if most is None else {"most": most}), **facts}
        print(json.dumps({"seconds": round(time.monotonic() - START, 1), **line}), flush=True)
        if most is not None and not (value is not None and value <= most):
            self.failures.append(f"{name} is {rounded}, above {most}: {facts}")

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], rounds: int = 3) -> float:
        """Return the seconds that work takes once it has run before, the fastest of some rounds."""
        work()
        taken = []
        for _ in range(rounds):
            self.wait()
            started = time.monotonic()
            work()
            self.wait()
            taken.append(time.monotonic() - started)
        return min(taken)

    def peak_gib(self) -> float | None:
        """Return the most memory that tensors took since `free`."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.on_gpu else None

    def free(self) -> None:
        """Give back what nothing refers to, and count the peak anew."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest expected number."""
    return float((value.double() - expected.double()).abs().max() / expected.double().abs().max())
