"""Loads a text reward model with the head that its files hold, and finds out whether it is bidirectional."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from carevl.errors import reading
from carevl.models.heads import FoundHead, HeadSettings
from carevl.models.heads.layout import RewardLayout, read_layout
from carevl.models.judge_files import quiet_transformers
from carevl.models.stored_weights import weight_files


@dataclass(frozen=True)
class RewardModelParts:
    """A loaded reward model.

    Attributes:
        model: in evaluation mode.
        head: the module of `layout.head`; None where the model's own code gives its outputs.
    """

    model: Any
    head: nn.Module | None
    layout: RewardLayout


def load_reward_model(
    path: str | Path, dtype: str = "auto", settings: HeadSettings | None = None, *, trust_remote_code: bool = False
) -> RewardModelParts:
    """Load a reward model, every weight of it read from safetensors.

    Args:
        trust_remote_code: whether Python code that comes with it may run.

    Raises:
        UserError: as `read_layout`.
        OSError: the directory lacks weights or configuration.
    """
    layout = read_layout(path, settings, trust_remote_code=trust_remote_code)
    with quiet_transformers():
        model = layout.model_class.from_pretrained(path, config=layout.config, dtype=dtype, use_safetensors=True)
    head = None if layout.head is None else load_head(path, layout.head)
    if head is not None and dtype != "auto":
        head.to(getattr(torch, dtype))
    return RewardModelParts(model.eval(), head, layout)


def load_head(path: str | Path, found: FoundHead) -> nn.Module:
    """Return the module of a head, in the format that it is stored in."""
    return found.make(_read_tensors(path, found.tensors)).eval()


def _read_tensors(path: str | Path, names: Iterable[str]) -> Mapping[str, Tensor]:
    tensors = {}
    for file in weight_files(Path(path)):
        with reading(file), safe_open(file, "pt") as weights:
            tensors.update({name: weights.get_tensor(name) for name in {*names}.intersection(weights.keys())})
    return tensors


def probe_ids(model: Any, tokens: int, n: int) -> Tensor:
    """Return int64 [n, tokens]: arbitrary ids, none of them the padding; the same ones every time."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (n, tokens), generator=torch.Generator().manual_seed(0))
    padding = model.config.get_text_config().pad_token_id
    if padding is not None:
        ids = torch.where(ids == padding, (ids + 1) % vocabulary, ids)
    return ids.to(model.device)


@torch.inference_mode()
def is_bidirectional(model: Any) -> bool:
    """Tell, by trying, whether the first token's state depends on the tokens after it: bidirectional attention."""
    ids = probe_ids(model, 12, 2)
    ids[1, 0] = ids[0, 0]
    first, second = model.base_model(input_ids=ids).last_hidden_state[:, 0].float()
    return bool((first - second).abs().max() > 1e-3 * first.abs().max())
