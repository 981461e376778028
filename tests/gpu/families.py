"""Families of judges: shared against plain in bfloat16, and the speed of preferences on a Qwen3-VL of 2B."""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from carevl.models.flex_attention import FLEX
from carevl.models.judge_files import load_processor
from carevl.models.packing import Packed, pack
from carevl.models.prompts import EncodedPrompts
from carevl.models.tree_attention import TREES, branch_log_probabilities, set_attention
from carevl.training.attention import find_flaw
from carevl.training.judge import load_judge
from carevl.training.plain import Plain, plain_log_probabilities, separate
from carevl.training.trial import draw_row, try_packing
from tests.gpu.figures import Check
from tests.gpu.models import H100_FLOPS, judge_trees, language_weights, make_qwen3_judge
from tests.helpers.families import SHARING, write_family

_ON_FLEX = ("internvl", "qwen3_vl", "gemma3", "paligemma", "llama4", "mllama", "glm4v", "llava")
"""Families whose rules and positions differ most: compiling for all takes minutes."""


def run(check: Check) -> None:
    """Write differences by family and attention, then pairs a second and the share of the card that is useful."""
    names = ("internvl", "gemma3") if check.small else SHARING
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            if name != "smolvlm" or find_spec("num2words"):
                _compare(check, name, Path(directory) / name)
    _train_qwen3(check)


def _compare(check: Check, name: str, directory: Path) -> None:
    write_family(name, directory)
    processor = load_processor(directory)
    model = load_judge(directory, "bfloat16").to(check.device).eval()
    for kind in [TREES, FLEX] if check.on_gpu and name in _ON_FLEX else [TREES]:
        set_attention(model, kind)
        torch._dynamo.reset()
        started = time.monotonic()
        trial = try_packing(model, processor)
        facts: dict[str, Any] = {"family": name, "attention": kind, "reason": trial.reason}
        check.figure("family_difference_nats", trial.difference, **facts)
        check.figure("family_not_shared", float(trial.reason is not None), most=0, **facts)
        if kind == FLEX:
            flaw = find_flaw(model, draw_row(model, processor).to(model.device))
            took = round(time.monotonic() - started, 2)
            check.figure("family_flex_flaws", float(flaw is not None), most=0, family=name, flaw=flaw, took=took)


def _train_qwen3(check: Check) -> None:
    from peft import LoraConfig, get_peft_model

    model = make_qwen3_judge(check)
    rank = 4 if check.small else 64
    get_peft_model(model, LoraConfig(r=rank, target_modules=r".*language_model.*(q|k|v|o|gate|up|down)_proj"))
    model.to(torch.bfloat16).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()
    trees, pictures = judge_trees(model, check, 2 if check.small else 10)
    row = pack(trees, model, pictures).to(check.device)
    useful = 6 * language_weights(model) * row.ids.numel() / H100_FLOPS
    for kind in [FLEX, TREES] if check.on_gpu else [TREES]:
        set_attention(model, kind)
        seconds = _measure(check, model, row)
        share = useful / seconds if check.on_gpu else None
        facts = {"attention": kind, "tokens": row.ids.numel(), "peak_gib": check.peak_gib(), "useful_mfu": share}
        check.figure("qwen3_pairs_per_second", len(trees) / seconds, **facts)
    every = [n for n, tree in enumerate(trees) for _ in tree.branches]
    images = {name: torch.cat([pictures[n].images[name] for n in every]) for name in pictures[0].images}
    kinds = [torch.tensor(trees[n].prefix).eq(model.config.image_token_id).int() for n in every]
    prompts = EncodedPrompts(tuple(list(trees[n].prefix) for n in every), {"mm_token_type_ids": kinds}, images)
    plain = separate(trees, model, prompts).to(check.device)
    seconds = _measure(check, model, plain)
    check.figure("qwen3_pairs_per_second", len(trees) / seconds, packing="plain", peak_gib=check.peak_gib())


def _measure(check: Check, model: Any, batch: Packed | Plain) -> float:
    compute: Any = branch_log_probabilities if isinstance(batch, Packed) else plain_log_probabilities

    def step() -> None:
        values = compute(model, batch).view(-1, 2)
        torch.nn.functional.softplus(0.1 * (values[:, 1] - values[:, 0])).sum().backward()
        model.zero_grad(set_to_none=True)

    check.free()
    return check.seconds(step, 2)
