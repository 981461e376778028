"""FlexAttention is tried before a training trusts it."""

from __future__ import annotations

import pytest
import torch

from carevl.miniworld.weights import WEIGHTS
from carevl.models import flex_attention
from carevl.models.flex_attention import FLEX
from carevl.models.tree_attention import TREES, attention_of, set_attention
from carevl.training.attention import find_flaw
from carevl.training.progress import Progress


def _attend(factor=1.0):
    """Attention under the mask of a block mask, as the compiled kernel is called; wrong by a factor."""

    def attend(query, key, value, *, block_mask, scale, enable_gqa):
        tokens = torch.arange(query.shape[2])
        seen = torch.stack(
            [block_mask.mask_mod(torch.tensor(0), torch.tensor(0), torch.full_like(tokens, q), tokens) for q in tokens]
        )
        return factor * torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )

    return attend


@pytest.fixture(params=["float32", "bfloat16"])
def row(begin, sft_rows, quick, request):
    """Of the shipped judge, whose weights attend to something."""
    loop, _ = begin("sft", sft_rows, quick(dtype=request.param), judge=WEIGHTS / "judge")
    [(_, packed), *_] = loop.prefetch(loop.shard(loop.config.schedule.step(0)))
    return loop, packed


def test_a_right_kernel_is_kept(row, monkeypatch):
    loop, packed = row
    monkeypatch.setattr(flex_attention, "_compiled", _attend)
    set_attention(loop.judge.model, FLEX)
    assert find_flaw(loop.judge.model, packed) is None
    assert attention_of(loop.judge.model) == FLEX


@pytest.mark.parametrize("factor", [0.8, float("nan")])
def test_a_wrong_kernel_is_found(row, monkeypatch, factor):
    loop, packed = row
    monkeypatch.setattr(flex_attention, "_compiled", lambda: _attend(factor))
    set_attention(loop.judge.model, FLEX)
    flaw = find_flaw(loop.judge.model, packed)
    assert flaw is not None
    assert "log-probabilities are off by" in flaw


def test_without_a_backward_kernel_a_training_goes_block_by_block_and_says_so(begin, sft_rows, quick, monkeypatch):
    """FlexAttention has no backward pass on a CPU."""
    monkeypatch.setattr("carevl.training.judge.device", lambda: "cuda")  # whose judges are set to FlexAttention
    loop, _ = begin("sft", sft_rows, quick())
    assert attention_of(loop.judge.model) == TREES
    sentence = loop.remarks["fallback"]
    assert sentence.startswith("FlexAttention does not serve here, so attention goes block by block: ")
    facts = {"step": 1, **loop.step(0), **loop.remarks}
    assert Progress.of([facts], 2, 0.1).line().endswith(f"warning: {sentence}")
