"""The judge in training: loading, what of it is trained, and the export of what was learned."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from carevl.models.device import device
from carevl.models.flex_attention import FLEX
from carevl.models.judge_files import load_processor
from carevl.models.own_code import code_arguments
from carevl.models.packing import Packed
from carevl.models.tree_attention import TREES, branch_log_probabilities, set_attention
from carevl.training.adapters import ROUNDING, Adapter, Rounding, compose, merge
from carevl.training.plain import Plain, plain_log_probabilities
from carevl.training.quantized import keep_trainable, loading_arguments
from carevl.training.stored_layout import StoredLayout, rewrite
from carevl.training.trainable import TRAINED_ADAPTER

if TYPE_CHECKING:
    from carevl.models.locate import Weights
    from carevl.settings.training import BaseBits


def log_probabilities(model: Any, batch: Packed | Plain) -> torch.Tensor:
    """Return the log-probability of every judgment of a batch given its prompt, float32 [M]; tokens count by weight."""
    if isinstance(batch, Packed):
        return branch_log_probabilities(model, batch)
    return plain_log_probabilities(model, batch)


class TrainedJudge(torch.nn.Module):
    """A vision-language model whose forward pass gives the log-probability of every branch, float32 [M]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Packed | Plain) -> torch.Tensor:
        return log_probabilities(self.model, batch)


def load_judge(judge: Path, dtype: str, base_bits: BaseBits | None = None) -> Any:
    """Load the judge with attention over trees in its language model: FlexAttention on a GPU, else block by block.

    Args:
        base_bits: of the linear layers of the language model; None: these are numbers of `dtype`, too.

    Raises:
        UserError: it is to have fewer bits, and bitsandbytes is not installed.
    """
    from transformers import AutoModelForImageTextToText

    quantized = {} if base_bits is None else loading_arguments(judge, base_bits, dtype)
    model = AutoModelForImageTextToText.from_pretrained(
        judge, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, **quantized, **code_arguments()
    )
    if base_bits is not None:
        keep_trainable(model)
    set_attention(model, FLEX if device() == "cuda" else TREES)
    return model


def restore_positions(model: Any) -> None:
    """Compute the frequencies of position embeddings anew, in float32.

    DeepSpeed casts all that is made while it spreads weights, and frequencies in bfloat16 move every position.
    """
    for module in model.modules():
        computed = {name: module.get_buffer(name) for name in module._non_persistent_buffers_set}
        if any(buffer.is_floating_point() for buffer in computed.values()):
            for name, buffer in computed.items():
                setattr(module, name, buffer.float() if buffer.is_floating_point() else buffer)
            model._init_weights(module)


def export(
    trained: Any, state: dict[str, torch.Tensor] | None, base: Weights, out: Path, adapter: Path | None = None
) -> Rounding | None:
    """Write `out/judge`, a complete Hugging Face directory, and `out/adapter` when adapters were trained.

    The adapter is one of `base`: what the training began with is in it. It is merged once, from the files of `base`,
    in float32. A directory appears whole or not at all.

    Args:
        trained: what `make_trainable` returned.
        state: its trained weights when they are spread over workers; None: it holds them itself.
        base: the judge that the training began with.
        adapter: that of an adapter which the training began with.

    Returns:
        What the format of the merged weights loses, also in `out/rounding.json`; None when all weights were trained.
    """
    from peft import PeftModel

    if not isinstance(trained, PeftModel):
        _write(out / "judge", lambda target: _save_judge(trained, base.directory, target, state))
        return None
    _write(out / "adapter", lambda target: _save_adapter(trained, base.path, target, state, adapter))
    return merge_judge(base.directory, out)


def merge_judge(judge: Path, out: Path) -> Rounding:
    """Write `out/judge`, which is `judge` with `out/adapter` merged into it; return what was lost by rounding."""
    _write(out / "judge", lambda target: _save_merged(judge, out, target))
    rounding = Rounding.read(out / ROUNDING)
    assert rounding is not None
    return rounding


def _save_merged(judge: Path, out: Path, target: Path) -> None:
    target.mkdir(parents=True)
    merge(judge, Adapter.read(out / "adapter"), target).write(out / ROUNDING)
    _save_processor(judge, target)


def _save_processor(judge: Path, target: Path) -> None:
    """Write the judge's processor, without the word on whether the hub could be reached when it was loaded."""
    load_processor(judge).save_pretrained(target)
    file = target / "tokenizer_config.json"
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("local_files_only", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_judge(model: Any, judge: Path, target: Path, state: dict[str, torch.Tensor] | None) -> None:
    """Write all weights as the files of the judge hold them, in the format that they were trained in."""
    target.mkdir(parents=True)
    weights: Mapping[str, torch.Tensor] = model.state_dict() if state is None else state
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    tied = {name: group for group in names.values() for name in group}

    def value(name: str) -> torch.Tensor | None:
        return next((weights[other] for other in tied.get(name, [name]) if other in weights), None)

    rewrite(StoredLayout(judge), target, value, lambda weight, stored, part: part.detach().to("cpu", copy=True))
    dtype = str(model.dtype).removeprefix("torch.")
    config = target / "config.json"
    config.write_text(json.dumps({**_with_dtype(json.loads(config.read_text()), dtype), "dtype": dtype}, indent=2))
    _save_processor(judge, target)


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return a configuration that says another format of the weights wherever it says one."""
    changed = dict(config)
    for name, value in config.items():
        if isinstance(value, dict):
            changed[name] = _with_dtype(value, dtype)
        elif name in ("dtype", "torch_dtype") and value is not None:
            changed[name] = dtype
    return changed


def _save_adapter(
    trained: Any, base: str, target: Path, state: dict[str, torch.Tensor] | None, before: Path | None
) -> None:
    trained.save_pretrained(target, state_dict=state, selected_adapters=[TRAINED_ADAPTER])
    adapters = [] if before is None else [Adapter.read(before)]
    compose([*adapters, Adapter.read(target)], base).write(target)


def _write(directory: Path, save: Any) -> None:
    unfinished = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    save(unfinished)
    for weights in unfinished.glob("*.safetensors"):  # safetensors lets nobody but their owner read them
        shutil.copymode(next(unfinished.glob("*config.json")), weights)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.replace(directory)
