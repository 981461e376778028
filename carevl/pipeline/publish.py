"""The judge of a run as an ordinary model directory: weights, processor, card, and one adapter for both phases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.models.judge_spec import JudgeSpec

if TYPE_CHECKING:
    from torch import Tensor

_CARD = "README.md"
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_A, _B = ".lora_A.weight", ".lora_B.weight"


def publish(phases: Sequence[Path], base: str, target: Path, fingerprint: str, results: Sequence[str]) -> None:
    """Write `target`: the last phase's merged judge, `adapter/` relative to `base`, and a card.

    The directory appears whole. One that holds the same fingerprint keeps its weights and gets a new card.

    Args:
        phases: the training directories, in order; each has `judge/` and, with LoRA, `adapter/`.
        base: the model that phase 1 began with, as the adapter names it.
        fingerprint: of the last phase.
        results: lines of the table of results, for the card.
    """
    marker = target / "judge.json"
    if not marker.exists() or json.loads(marker.read_text())["fingerprint"] != fingerprint:
        unfinished = target.with_name(f".{target.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(phases[-1] / "judge", unfinished)
        if all((phase / "adapter").is_dir() for phase in phases):
            compose([phase / "adapter" for phase in phases], base, unfinished / "adapter")
            JudgeSpec.read(unfinished).write(unfinished / "adapter")
        (unfinished / "judge.json").write_text(json.dumps({"fingerprint": fingerprint, "base": base}, indent=2))
        shutil.rmtree(target, ignore_errors=True)
        unfinished.replace(target)
    (target / _CARD).write_text(_card(base, results), encoding="utf-8")


def compose(adapters: Sequence[Path], base: str, target: Path) -> None:
    """Return one adapter that adds what several do, each trained on top of the ones before it.

    Each adds s B A to a weight, s = alpha / rank; side by side, [s1 B1, s2 B2] [A1; A2] adds the sum exactly.
    """
    import torch
    from safetensors.torch import load_file, save_file

    configs = [json.loads((adapter / _CONFIG).read_text()) for adapter in adapters]
    weights: list[Mapping[str, Tensor]] = [load_file(adapter / _WEIGHTS) for adapter in adapters]
    modules = sorted({name.removesuffix(_A) for tensors in weights for name in tensors if name.endswith(_A)})
    composed: dict[str, Tensor] = {}
    for module in modules:
        shapes = next((tensors[module + _A], tensors[module + _B]) for tensors in weights if module + _A in tensors)
        parts = [_parts(tensors, config, module, shapes) for tensors, config in zip(weights, configs, strict=True)]
        composed[module + _A] = torch.cat([a for a, _ in parts], dim=0).contiguous()
        composed[module + _B] = torch.cat([b for _, b in parts], dim=1).contiguous()
    rank = sum(config["r"] for config in configs)
    targets = sorted({name for config in configs for name in config["target_modules"]})
    config = configs[-1] | {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": targets,
        "base_model_name_or_path": base,
    }
    target.mkdir(parents=True)
    save_file(composed, target / _WEIGHTS, metadata={"format": "pt"})
    (target / _CONFIG).write_text(json.dumps(config, indent=2))
    shutil.copymode(target / _CONFIG, target / _WEIGHTS)


def _parts(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], module: str, like: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """A and scaled B of a module; zeros of the adapter's rank where it leaves the module alone."""
    rank = config["r"]
    if module + _A not in tensors:
        a, b = like
        return a.new_zeros(rank, a.shape[1]), b.new_zeros(b.shape[0], rank)
    return tensors[module + _A], tensors[module + _B] * (config["lora_alpha"] / rank)


def _card(base: str, results: Sequence[str]) -> str:
    table = "\n".join(results)
    return f"""---
tags: [carevl, reward-model, vision-language]
base_model: {base}
---

# A vision-language judge

Trained by CAREVL from `{base}` on preference data without human labels: imitation of its own judgments where text
reward models are sure of the label (phase 1), then DPO on its judgments of the rest (phase 2).

It is asked with the prompts of `carevl.judging.prompts` and answers with one sentence of evidence and a verdict:

```python
from carevl import RewardModel

RewardModel("this directory").judge("photo.jpg", "How many dogs are there?", ("Two dogs.", "Three dogs."))
```

`adapter/`, if it is there, holds both phases as one LoRA adapter of the base.

## What it reached

```
{table}
```

Measured on the run's development data unless the table says otherwise. Answers of a judge are guesses: check them where
they matter.
"""
