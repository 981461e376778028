"""Attention tree by tree against attention under a mask over whole rows."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from carevl.models.packing import Tree, dense_mask, pack
from carevl.models.tree_attention import TREES, blocks, branch_states

SHAPE = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "pad_token_id": 0}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    config = hf.LlamaConfig(**SHAPE, num_attention_heads=4, num_key_value_heads=2)
    return hf.LlamaForSequenceClassification._from_config(config, attn_implementation="sdpa").eval()


def _tree(seed, prefix, *branches):
    words = torch.randint(1, 96, (prefix + sum(branches),), generator=torch.Generator().manual_seed(seed)).tolist()
    starts = [prefix + sum(branches[:b]) for b in range(len(branches))]
    return Tree(words[:prefix], [words[a : a + n] for a, n in zip(starts, branches, strict=True)])


TREES_OF_ALL_SHAPES = [_tree(1, 40, 200, 180, 3), _tree(2, 1, 5), _tree(3, 30, 0), _tree(4, 9, 300, 0, 2, 2)]


@torch.inference_mode()
def test_states_are_those_under_the_mask(model):
    packed = pack(TREES_OF_ALL_SHAPES, model)
    model.set_attn_implementation("sdpa")
    hidden = model.model(input_ids=packed.ids, attention_mask=dense_mask(packed), position_ids=packed.positions)[0]
    ends = []
    for tree, place in zip(TREES_OF_ALL_SHAPES, packed.places, strict=True):
        last = zip(tree.branches, place.ends, strict=True)
        ends += [(end if branch else place.prefix_end) - 1 for branch, end in last]
    model.set_attn_implementation(TREES)
    actual = branch_states(model, packed)
    assert actual.shape == (9, 64)
    assert (actual - hidden[0, ends]).abs().max() < 1e-5


@torch.inference_mode()
def test_without_blocks_it_is_ordinary_attention(model):
    ids = torch.randint(1, 96, (2, 20), generator=torch.Generator().manual_seed(9))
    mask = torch.ones_like(ids)
    mask[0, 15:] = 0
    model.set_attn_implementation("sdpa")
    expected = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[0, :15]
    model.set_attn_implementation(TREES)
    actual = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[0, :15]
    assert (actual - expected).abs().max() < 1e-6


def test_long_branches_do_not_meet_each_other_and_every_token_is_there_once(model):
    packed = pack(TREES_OF_ALL_SHAPES, model)
    row = blocks(packed)
    assert sum(block.tokens for block in row) == sum(tree.tokens for tree in TREES_OF_ALL_SHAPES)
    assert [block.tokens for block in row if block.mask is not None] == [200, 183, 6, 30, 300, 4]
