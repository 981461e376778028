"""NVIDIA's GPUs as their driver lists them, and why torch sees none of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_QUERY = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
_SECONDS = 60
_DRIVERS = {"11": 450, "12": 525, "13": 580}
"""Major version of CUDA to the oldest driver that runs programs built for it (CUDA Compatibility, table 1)."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as `nvidia-smi` lists it; `memory` in its own words, such as `81559 MiB`."""

    name: str
    driver: str
    memory: str


def list_gpus() -> list[Gpu]:
    """Return the GPUs of this machine by `nvidia-smi`; none where it is missing or fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(
            ["nvidia-smi", *_QUERY], capture_output=True, text=True, check=True, timeout=_SECONDS
        ).stdout
    except (subprocess.SubprocessError, OSError):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in listed.splitlines()]
    return [Gpu(*row) for row in rows if len(row) == 3]


def explain_unseen(gpus: Sequence[Gpu], cuda: str | None) -> str:
    """Return what to do where torch sees none of these GPUs.

    Args:
        cuda: the version of CUDA that torch is built for; None: a build without.
    """
    if cuda is None:
        return "it is a build without CUDA: install carevl[gpu] there"
    needed = _DRIVERS.get(cuda.split(".")[0])
    oldest = f"CUDA {cuda}" + ("" if needed is None else f" (driver {needed} or newer)")
    if not gpus:
        return f"check there that nvidia-smi lists the GPU and that its driver is new enough for {oldest}"
    driver = gpus[0].driver
    if needed is not None and driver.split(".")[0].isdigit() and int(driver.split(".")[0]) < needed:
        return f"it is built for {oldest}, and the driver there is {driver}: install a newer driver"
    return (
        f"it is built for {oldest}, for which the driver there, {driver}, is new enough; "
        "`python -c 'import torch; torch.zeros(1).cuda()'` says there what fails"
    )


def find_unseen() -> str | None:
    """Return a sentence about GPUs of this machine that its driver lists and torch does not see; None without any."""
    gpus = list_gpus()
    if not gpus:
        return None
    import torch

    if torch.cuda.is_available():
        return None
    first = gpus[0]
    listed = f"nvidia-smi lists {len(gpus)} GPU ({first.name}, {first.memory}, driver {first.driver})"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    advice = explain_unseen(gpus, torch.version.cuda)
    if torch.version.cuda is not None and hidden in ("", "-1"):
        advice = f"CUDA_VISIBLE_DEVICES={hidden!r} hides them: unset it"
    return f"this machine: {listed}, and torch {torch.__version__} sees none; {advice}"
