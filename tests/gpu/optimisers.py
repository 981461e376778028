"""DeepSpeed in bfloat16: which optimiser, and how gradients of many micro-batches add up. Left out without it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch

from tests.gpu.figures import Check

_PARTS = 64


def run(check: Check) -> None:
    """Write the relative error of a gradient's norm, against float32, by ZeRO stage and format of accumulation."""
    if find_spec("deepspeed") is None:
        check.figure("gradient_norm_error", None, skipped="deepspeed is not installed")
        return
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ.update(port)
    deepspeed.init_distributed(dist_backend="nccl" if check.on_gpu else "gloo")
    for stage in (0, 1, 2, 3):
        for extra in ({}, {"data_types": {"grad_accum_dtype": "fp32"}}):
            facts = {"stage": stage, "accumulates": "fp32" if extra else "default"}
            try:
                error, optimiser = _measure(check, deepspeed, stage, extra)
                check.figure("gradient_norm_error", error, optimiser=optimiser, **facts)
            except Exception as problem:  # what DeepSpeed refuses is a finding
                message = f"{type(problem).__name__}: {' '.join(str(problem).split())[:150]}"
                check.figure("gradient_norm_error", None, refused=message, **facts)
    torch.distributed.destroy_process_group()


def _measure(check: Check, deepspeed: Any, stage: int, extra: dict[str, Any]) -> tuple[float, str]:
    torch.manual_seed(0)
    size = 128 if check.small else 512
    layers = [torch.nn.Linear(size, size, bias=False) for _ in range(4)]
    model = torch.nn.Sequential(*layers).bfloat16()
    whole = torch.nn.Sequential(*(torch.nn.Linear(size, size, bias=False) for _ in range(4)))
    whole.load_state_dict({name: weight.float() for name, weight in model.state_dict().items()})
    inputs = torch.randn(_PARTS * 4, size)
    whole(inputs).pow(2).sum().div(len(inputs)).backward()
    expected = float(torch.cat([weight.grad.flatten() for weight in whole.parameters()]).norm())
    configuration = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=configuration | extra)
    for n in range(_PARTS):
        part = inputs[n::_PARTS].to(check.device, torch.bfloat16)
        engine.set_gradient_accumulation_boundary(n == _PARTS - 1)
        engine.backward(engine(part).float().pow(2).sum() / len(inputs))
    engine.step()
    found = float(engine.get_global_grad_norm() or 0.0)
    return abs(found - expected) / expected, type(engine.optimizer).__name__
