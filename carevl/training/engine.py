"""How DeepSpeed and the process group are set up for the settings of a phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from carevl.models.device import device, is_rehearsal

if TYPE_CHECKING:
    from carevl.settings.training import Training, Workers


def select_backend(workers: Workers) -> Literal["nccl", "gloo"]:
    """Return the library through which workers with these reservations talk; in a rehearsal, that of this process."""
    if is_rehearsal() and device() == "cpu":
        return "gloo"
    return "nccl" if workers.num_gpus else "gloo"


def zero_stage(training: Training) -> int:
    """Return the stage of ZeRO that is used: in bfloat16 never less than 1.

    Gradients of several micro-batches have to be added up in float32, which DeepSpeed does not do at stage 0. On one
    worker stage 1 spreads nothing.
    """
    return max(training.zero.stage, 1 if training.dtype == "bfloat16" else 0)


def is_bare(training: Training) -> bool:
    """Whether DeepSpeed neither spreads nor scales anything; the worker loop clips gradients then."""
    return training.zero.stage == 0 and training.dtype == "float32"


def deepspeed_config(training: Training, hidden_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration; the worker loop itself decides which micro-batch ends a step.

    Args:
        hidden_size: of the language model. ZeRO's buffers are made to fit it, as transformers' Trainer does: those of
            DeepSpeed's own size, up to 5e8 numbers, can take more memory than spreading saves.
    """
    zero: dict[str, Any] = {
        "stage": zero_stage(training),
        "reduce_bucket_size": hidden_size**2,
        "allgather_bucket_size": hidden_size**2,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    if training.zero.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0 if is_bare(training) else training.gradient_clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW serves offloaded optimisers too
        "bf16": {"enabled": training.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",  # else sums over micro-batches and workers are rounded on their way
        "steps_per_print": 2**62,
    }


@contextmanager
def gather_where_read(engine: Any) -> Iterator[None]:
    """Gather weights that ZeRO 3 has spread wherever they are read, as the engine does in its own forward pass.

    DeepSpeed gathers a module's when it runs, but PEFT reads the factors of experts without running their modules.
    """
    holders = [module._parameters for module in engine.module.modules()]
    holders = [holder for holder in holders if hasattr(holder, "_in_forward")]
    for holder in holders:
        holder._in_forward = True
    try:
        yield
    finally:
        for holder in holders:
            holder._in_forward = False
