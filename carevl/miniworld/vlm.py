"""Training the small vision-language models from nothing on a CPU.

The step is written for speed on two cores (one compiled function, equal image sizes, logits at taught positions
only); `check_step` shows that it computes what the stock model computes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from carevl.miniworld.batches import Batch
from carevl.miniworld.scenes import GRID

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Qwen2VLForConditionalGeneration

Step = Callable[..., "Tensor"]
_IMAGE_AT = 4
"""Position of the first image token: after `<|im_start|>user\\n<|vision_start|>`."""


def keep_memory() -> None:
    """Keep freed blocks inside the process: page faults on large activations cost a third of a CPU step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def rope_positions(length: int) -> Tensor:
    """Return multimodal positions int64 [3, 1, length] (time, row, column) of a sequence whose image comes first."""
    import torch

    n_image = GRID * GRID
    text = torch.arange(length)
    positions = text.repeat(3, 1)
    positions[:, _IMAGE_AT + n_image :] -= n_image - GRID
    cells = torch.arange(n_image)
    positions[0, _IMAGE_AT : _IMAGE_AT + n_image] = _IMAGE_AT
    positions[1, _IMAGE_AT : _IMAGE_AT + n_image] = _IMAGE_AT + cells // GRID
    positions[2, _IMAGE_AT : _IMAGE_AT + n_image] = _IMAGE_AT + cells % GRID
    return positions[:, None]


def _image_embeddings(model: Qwen2VLForConditionalGeneration, images: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn [B, 36, 768] patches of one frame into [B, 9, hidden]: the vision tower with all images in one batch."""
    import torch
    from torch.nn.functional import linear, scaled_dot_product_attention

    tower = model.model.visual
    weight = tower.patch_embed.proj.weight
    n, n_patches, _ = images.shape
    hidden = linear(images, weight.sum(2).flatten(1))

    def rotate(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    for block in tower.blocks:
        heads = block.attn.num_heads
        qkv = block.attn.qkv(block.norm1(hidden)).view(n, n_patches, 3, heads, -1).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(rotate(qkv[0]), rotate(qkv[1]), qkv[2])
        hidden = hidden + block.attn.proj(attended.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged: Tensor = tower.merger(hidden.flatten(0, 1))
    return merged.view(n, GRID * GRID, -1)


def vision_rotation(model: Qwen2VLForConditionalGeneration) -> tuple[Tensor, Tensor]:
    """Return cos and sin, [36, head size], of the vision tower's rotary positions for one image."""
    import torch

    head = model.config.vision_config.embed_dim // model.config.vision_config.num_heads
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, head // 2, 2).float() / (head // 2))
    merged = torch.arange(2 * GRID).view(GRID, 2)
    rows = merged.view(GRID, 1, 2, 1).expand(GRID, GRID, 2, 2).flatten()
    columns = merged.view(1, GRID, 1, 2).expand(GRID, GRID, 2, 2).flatten()
    angles = torch.cat((rows[:, None] * frequencies, columns[:, None] * frequencies), -1)
    doubled = torch.cat((angles, angles), -1)
    return doubled.cos(), doubled.sin()


def taught_logits(
    model: Qwen2VLForConditionalGeneration,
    ids: Tensor,
    images: Tensor,
    positions: Tensor,
    taught: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    """Return the logits [N, vocabulary] at the flat positions `taught` int64 [N] of `ids` int64 [B, T]."""
    import torch

    embedded = model.get_input_embeddings()(ids)
    seen = _image_embeddings(model, images, cos, sin)
    n_image = GRID * GRID
    embedded = torch.cat((embedded[:, :_IMAGE_AT], seen, embedded[:, _IMAGE_AT + n_image :]), 1)
    states = model.model.language_model(
        inputs_embeds=embedded, position_ids=positions.expand(-1, ids.shape[0], -1), use_cache=False
    ).last_hidden_state
    logits: Tensor = model.lm_head(states.flatten(0, 1)[taught])
    return logits


def tensors(batch: Batch) -> dict[str, Tensor]:
    """Return a batch as arguments of `taught_logits` (but for the rotation), its targets, and which are verdicts."""
    import torch

    flat = batch.targets.reshape(-1)
    taught = np.flatnonzero(flat >= 0)
    return {
        "ids": torch.from_numpy(batch.ids),
        "images": torch.from_numpy(batch.images),
        "positions": rope_positions(batch.ids.shape[1]),
        "taught": torch.from_numpy(taught),
        "targets": torch.from_numpy(flat[taught]),
        "verdicts": torch.from_numpy(batch.verdicts.reshape(-1)[taught]),
    }
