"""The judge in training: loading, what of it is trained, and the export of what was learned."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from carevl.errors import UserError
from carevl.models.device import device
from carevl.models.flex_attention import FLEX
from carevl.models.judge_files import load_processor
from carevl.models.packing import Packed
from carevl.models.tree_attention import TREES, branch_log_probabilities, language_weights, set_attention
from carevl.training.adapters import ROUNDING, Adapter, Rounding, compose, merge
from carevl.training.plain import Plain, plain_log_probabilities

if TYPE_CHECKING:
    from carevl.models.locate import Weights
    from carevl.settings.training import Lora, Training

_BEFORE, _TRAINED = "before", "default"
"""Names that PEFT knows the adapters by: the one that a phase begins with, and the one that it trains."""


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


def load_skeleton(judge: Path) -> Any:
    """Return the judge's modules without weights, on the meta device."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(judge))


def load_judge(judge: Path, dtype: str) -> Any:
    """Load the judge with attention over trees in its language model: FlexAttention on a GPU, else block by block."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        judge, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
    )
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


def add_adapter(model: Any, adapter: Path) -> Any:
    """Put an adapter on a model, frozen and in the model's own format; return the PEFT wrapper."""
    from peft import LoraConfig, PeftModel

    config = LoraConfig.from_pretrained(str(adapter))
    config.lora_dropout = 0.0  # it is part of what is trained on, as merged weights would be
    dtype = model.dtype
    wrapped = PeftModel.from_pretrained(model, adapter, adapter_name=_BEFORE, config=config)
    for name, weight in wrapped.named_parameters():
        if f".{_BEFORE}." in name:  # PEFT computes an adapter in float32, training in the format of the model
            weight.data = weight.data.to(dtype)
    return wrapped


def find_lora_modules(model: Any, lora: Lora, freeze_vision: bool) -> list[str]:
    """Return the full names of the linear modules that get adapters.

    Raises:
        UserError: a target matches none.
    """
    language = language_weights(model)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not model.get_output_embeddings()
        and not (freeze_vision and id(module.weight) not in language)
    ]
    for target in lora.targets:
        if not any(_matches(name, target) for name in linear):
            raise UserError(
                f"lora.targets: {target} matches no linear module of the judge; near are {_near(target, linear)}"
            )
    return [name for name in linear if any(_matches(name, target) for target in lora.targets)]


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _near(target: str, names: Sequence[str]) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    return ", ".join(difflib.get_close_matches(target.rsplit(".", 1)[-1], ends, 5, cutoff=0.3) or ends)


def make_trainable(model: Any, training: Training, adapter: Path | None = None) -> Any:
    """Freeze what is not trained, and add adapters; return the PEFT wrapper, or the model itself without LoRA.

    Args:
        adapter: what the training begins with on top of the model; it stays as it is.
    """
    if training.lora is None:
        language = language_weights(model)
        for weight in model.parameters():
            weight.requires_grad = not (training.freeze_vision and id(weight) not in language)
        trained = model
    else:
        from peft import LoraConfig

        lora = training.lora
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=find_lora_modules(model, lora, training.freeze_vision),
            task_type="CAUSAL_LM",
        )
        trained = _wrap(model, config, adapter)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # It makes the inputs of all embeddings require gradients, those of the vision tower too, which would then be
        # differentiated down to the pixels. Without reentrance nothing needs that. PEFT does the same to a model that
        # checkpoints already, and only the last hook can be removed: so adapters come first.
        model.disable_input_require_grads()
    return trained


def _wrap(model: Any, config: Any, adapter: Path | None) -> Any:
    """Add the adapter that is trained, beside the one that the training begins with: both are active."""
    from peft import get_peft_model

    if adapter is None:
        return get_peft_model(model, config)
    wrapped = add_adapter(model, adapter)
    wrapped.add_adapter(_TRAINED, config)
    wrapped.base_model.set_adapter([_BEFORE, _TRAINED])
    for name, weight in wrapped.named_parameters():
        weight.requires_grad = f".{_TRAINED}." in name
    return wrapped


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
    target.mkdir()
    merge(judge, Adapter.read(out / "adapter"), target).write(out / ROUNDING)
    load_processor(judge).save_pretrained(target)


def _save_judge(model: Any, judge: Path, target: Path, state: dict[str, torch.Tensor] | None) -> None:
    model.save_pretrained(target, state_dict=state)
    load_processor(judge).save_pretrained(target)


def _save_adapter(
    trained: Any, base: str, target: Path, state: dict[str, torch.Tensor] | None, before: Path | None
) -> None:
    trained.save_pretrained(target, state_dict=state, selected_adapters=[_TRAINED])
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
