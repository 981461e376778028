"""Packed rows against separate, unpadded sequences, through the model's own forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf

from carevl.models import vocabulary
from carevl.models.families import family_of
from carevl.models.families.base import Picture
from carevl.models.flex_attention import FLEX, block_mask
from carevl.models.packing import Packed, Shape, Tree, computed_tokens, dense_mask, fill_rows, pack, usable_packing
from carevl.models.prompts import EncodedPrompts
from carevl.models.tree_attention import MASKED, branch_log_probabilities, set_attention
from carevl.models.tree_attention import TREES as BLOCKS
from carevl.training.plain import plain_log_probabilities, separate

pytestmark = pytest.mark.vllm

IMAGE, START, END, VOCABULARY = 90, 91, 92, 96
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
SPECIAL = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END, "video_token_id": 93}


def _vision(kind: str) -> hf.PreTrainedModel:
    torch.manual_seed(5)
    text = TEXT | {"rope_parameters": ROPE}
    common: dict[str, Any] = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if kind == "qwen2_vl":
        vision = common | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
        config = hf.Qwen2VLConfig(text_config=text, vision_config=vision, **SPECIAL)
        return _masked(hf.Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval())
    vision = common | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **SPECIAL)
    return _masked(hf.Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval())


def _masked(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    set_attention(model, MASKED)
    return model


def _picture(seed: int, rows: int, columns: int) -> Picture:
    patches = torch.randn(rows * columns, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(seed))
    return Picture({"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, columns]])})


PICTURES = {"wide": _picture(1, 4, 10), "tall": _picture(2, 8, 4)}


def _words(seed: int, n: int) -> list[int]:
    return torch.randint(1, 90, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def _tree(seed: int, image: str | None, prefix: int, *branches: int) -> Tree:
    shown = [] if image is None else [START, *[IMAGE] * (len(PICTURES[image].images["pixel_values"]) // 4), END]
    return Tree([*shown, *_words(seed, prefix)], [_words(seed + 7 * n, n) for n in branches], image)


TREES = [
    _tree(1, "wide", 12, 9, 13),
    _tree(2, "tall", 30, 5, 1, 21),
    _tree(3, "wide", 6, 8),
    _tree(4, "wide", 15, 11, 11),
]


def _pack(trees: list[Tree], model: hf.PreTrainedModel, pictures: dict[str, Picture] = PICTURES) -> Packed:
    return pack(trees, model, [None if tree.image is None else pictures[tree.image] for tree in trees])


def _prompts(trees: list[Tree]) -> EncodedPrompts:
    """What a processor writes for the prompt of every branch."""
    every = [tree for tree in trees for _ in tree.branches]
    shown = [PICTURES[str(tree.image)].images for tree in every]
    kinds = [torch.tensor(tree.prefix).eq(IMAGE).int() for tree in every]
    images = {name: torch.cat([images[name] for images in shown]) for name in shown[0]}
    return EncodedPrompts(tuple(list(tree.prefix) for tree in every), {"mm_token_type_ids": kinds}, images)


def _alone(model: hf.PreTrainedModel, tree: Tree, branch: int) -> Any:
    ids = torch.tensor([[*tree.prefix, *tree.branches[branch]]])
    shown = {}
    if tree.image is not None:
        shown = {**PICTURES[tree.image].images, "mm_token_type_ids": ids.eq(IMAGE).int()}
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **shown).logits[0, len(tree.prefix) - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[0, len(tree.prefix) :, None]).sum()


def _gradients(model: hf.PreTrainedModel, values: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (values * torch.linspace(0.5, 1.5, len(values))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def _assert_exact(model: hf.PreTrainedModel, trees: list[Tree], attention: str) -> None:
    separate = torch.stack([_alone(model, tree, b) for tree in trees for b in range(len(tree.branches))])
    set_attention(model, attention)
    packed = branch_log_probabilities(model, _pack(trees, model))
    assert packed.shape == separate.shape
    assert (packed - separate).abs().max() < 1e-4
    expected, actual = _gradients(model, separate), _gradients(model, packed)
    assert actual.keys() == expected.keys()
    assert max(float((actual[name] - expected[name]).abs().max()) for name in expected) < 1e-4


@pytest.mark.parametrize("attention", [MASKED, BLOCKS])
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_log_probabilities_and_gradients_are_those_of_separate_sequences(kind, attention):
    model = _vision(kind)
    _assert_exact(model, TREES, attention)
    assert any("visual" in name for name, weight in model.named_parameters() if weight.grad is not None)


def test_trees_with_and_without_an_image_share_a_row():
    _assert_exact(_vision("qwen2_vl"), [TREES[0], _tree(9, None, 20, 6, 4), TREES[1]], BLOCKS)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_the_plain_path_gives_what_packing_gives(kind):
    model = _vision(kind)
    weighted = replace(TREES[1], weights=[[0.5 * k for k in range(len(branch))] for branch in TREES[1].branches])
    trees = [TREES[0], weighted, *TREES[2:]]
    set_attention(model, BLOCKS)
    packed = branch_log_probabilities(model, _pack(trees, model))
    expected = _gradients(model, packed)
    plain = plain_log_probabilities(model, separate(trees, model, _prompts(trees)))
    assert (plain - packed).abs().max() < 1e-4
    actual = _gradients(model, plain)
    assert actual.keys() == expected.keys()
    assert max(float((actual[name] - expected[name]).abs().max()) for name in expected) < 1e-4


@torch.no_grad()
def test_flex_attention_gives_what_a_mask_gives():
    model = _vision("qwen2_5_vl")
    packed = _pack(TREES, model)
    set_attention(model, MASKED)
    expected = branch_log_probabilities(model, packed)
    set_attention(model, FLEX)
    assert (branch_log_probabilities(model, packed) - expected).abs().max() < 1e-4
    mask = block_mask(packed)
    tokens = torch.arange(packed.ids.shape[1])
    seen = mask.mask_mod(tokens.new_zeros(1), tokens.new_zeros(1), tokens[:, None], tokens[None])
    assert torch.equal(seen, dense_mask(packed)[0, 0])


def test_linear_attention_learns_on_the_plain_path():
    torch.manual_seed(5)
    config = hf.Qwen3NextConfig(**TEXT, head_dim=16, layer_types=[*["linear_attention"] * 2, "full_attention"])
    model = hf.Qwen3NextForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    trees = [_tree(1, None, 17, 9, 4), _tree(2, None, 3, 30)]
    separate_values = torch.stack([_alone(model, tree, b) for tree in trees for b in range(len(tree.branches))])
    assert (plain_log_probabilities(model, separate(trees, model)) - separate_values).abs().max() < 1e-4


def test_a_text_model_is_exact_too():
    torch.manual_seed(5)
    model = hf.LlamaForCausalLM._from_config(hf.LlamaConfig(**TEXT), attn_implementation="sdpa").eval()
    _assert_exact(model, [_tree(1, None, 17, 9, 4), _tree(2, None, 3, 30), _tree(3, None, 1, 2, 2, 2)], BLOCKS)


def test_the_mask_of_two_small_trees():
    model = hf.LlamaForCausalLM._from_config(hf.LlamaConfig(**TEXT))
    packed = pack([Tree([1, 2], [[3], [4, 5]]), Tree([6], [[7]])], model)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert packed.positions.tolist() == [[0, 1, 2, 2, 3, 0, 1]]
    assert dense_mask(packed)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert packed.column.tolist() == [1, 1, 3, 5]
    assert packed.target.tolist() == [3, 4, 5, 7]


def test_the_vision_tower_runs_once_for_every_distinct_image():
    model = _vision("qwen2_vl")
    seen = []
    model.model.visual.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    branch_log_probabilities(model, _pack(TREES, model))
    assert seen == [sum(len(picture.images["pixel_values"]) for picture in PICTURES.values())]


def test_only_answer_positions_meet_the_vocabulary():
    model = _vision("qwen2_vl")
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[0]))
    branch_log_probabilities(model, _pack(TREES, model))
    assert seen == [sum(len(branch) for tree in TREES for branch in tree.branches)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_last_layer_thinks_about_answer_positions_only(checkpointing):
    model = _vision("qwen2_vl").train()
    plain = torch.stack([_alone(model, tree, b) for tree in TREES for b in range(len(tree.branches))])
    expected = _gradients(model, plain)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    seen = [0, 0]
    for n, layer in enumerate(model.model.language_model.layers[1:]):
        layer.mlp.down_proj.register_forward_hook(
            lambda module, inputs, output, n=n: seen.__setitem__(n, inputs[0].shape[1])
        )
    packed = _pack(TREES, model)
    set_attention(model, BLOCKS)
    actual = _gradients(model, branch_log_probabilities(model, packed))
    # The first tokens of a tree's branches are all predicted at the end of its prefix.
    answers = sum(1 + sum(len(branch) - 1 for branch in tree.branches) for tree in TREES)
    assert seen == [packed.ids.shape[1], packed.ids.shape[1] if checkpointing else answers]
    assert max(float((actual[name] - expected[name]).abs().max()) for name in expected) < 1e-4
    assert not any(module._forward_hooks for module in model.modules() if type(module).__name__ == "Qwen2MLP")


def test_rows_are_filled_up_to_the_budget():
    assert fill_rows([3, 9, 4, 6, 12], 10) == [[4], [1], [3, 2], [0]]


def test_what_a_batch_costs():
    shapes = [Shape(10, (2, 3)), Shape(4, (1,))]
    assert computed_tokens(shapes, "shared") == 20
    assert computed_tokens(shapes, "plain") == 3 * 13
    assert computed_tokens([], "plain") == 0


def test_a_recurrent_architecture_is_computed_plain():
    config = hf.RwkvConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1)
    with torch.device("meta"):
        model = hf.RwkvForCausalLM(config)
    packing, reason = usable_packing(model, "shared")
    assert packing == "plain"
    assert "rwkv cannot share prefixes: it has a recurrent state" in reason


def test_linear_attention_is_computed_plain():
    config = hf.Qwen3NextConfig(**TEXT, layer_types=["linear_attention", "full_attention", "full_attention"])
    with torch.device("meta"):
        model = hf.Qwen3NextForCausalLM(config)
    packing, reason = usable_packing(model, "shared")
    assert packing == "plain"
    assert "qwen3_next cannot share prefixes: it has linear_attention" in reason
    assert usable_packing(model, "plain") == ("plain", None)


@pytest.mark.parametrize("attention", [MASKED, BLOCKS])
@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_a_sliding_window_shorter_than_the_sequences_is_exact(kind, attention):
    torch.manual_seed(5)
    window = {"sliding_window": 8}
    if kind == "mistral":
        model = hf.MistralForCausalLM._from_config(hf.MistralConfig(**TEXT, **window), attn_implementation="sdpa")
    else:
        config = hf.Qwen2Config(**TEXT, **window, use_sliding_window=True, max_window_layers=1)
        model = hf.Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa")
    assert usable_packing(model, "shared") == ("shared", None)
    trees = [_tree(1, None, 17, 9, 14), _tree(2, None, 3, 30), _tree(3, None, 300, 20)]
    _assert_exact(model.eval(), trees, attention)
    if attention == MASKED:
        with torch.no_grad():  # on a CPU FlexAttention computes forward only
            expected = branch_log_probabilities(model, pack(trees, model))
            set_attention(model, FLEX)
            assert (branch_log_probabilities(model, pack(trees, model)) - expected).abs().max() < 1e-4


def test_a_row_in_whole_blocks_gives_what_it_gives_as_it_is():
    model = _vision("qwen2_5_vl")
    packed = _pack(TREES, model)
    filled = packed.padded(128)
    assert filled.ids.shape[1] % 128 == 0
    assert filled.ids.shape[1] > packed.ids.shape[1]
    mask = dense_mask(filled)[0, 0]
    assert not mask[: packed.ids.shape[1], packed.ids.shape[1] :].any()
    assert not mask[packed.ids.shape[1] :, : packed.ids.shape[1]].any()
    values, expected = branch_log_probabilities(model, filled), branch_log_probabilities(model, packed)
    assert (values - expected).abs().max() < 1e-5
    gradients, right = _gradients(model, values), _gradients(model, expected)
    assert max(float((gradients[name] - right[name]).abs().max()) for name in right) < 1e-5


def test_known_features_stand_in_for_the_images_that_they_are_of():
    model = _vision("qwen2_5_vl")
    expected = branch_log_probabilities(model, _pack(TREES, model))
    wide = PICTURES["wide"]
    with torch.no_grad():
        features = family_of(model).features(model, wide.images)
    positions = family_of(model).position_inputs(model, wide.images)
    assert list(positions) == ["image_grid_thw"]
    known = PICTURES | {"wide": Picture(positions, features=features)}
    seen = []
    model.model.visual.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    assert (branch_log_probabilities(model, _pack(TREES, model, known)) - expected).abs().max() < 1e-5
    assert seen == [len(PICTURES["tall"].images["pixel_values"])]


@pytest.mark.parametrize("grad", [True, False])
def test_many_answers_meet_the_vocabulary_in_chunks(monkeypatch, grad):
    model = _vision("qwen2_vl")
    packed = _pack(TREES, model)
    values = branch_log_probabilities(model, packed)
    expected = _gradients(model, values)
    monkeypatch.setattr(vocabulary, "_LOGITS", 7 * VOCABULARY)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    with torch.set_grad_enabled(grad):
        chunked = branch_log_probabilities(model, packed)
    assert sum(sizes) == len(packed.target)
    assert max(sizes) == 7
    assert torch.allclose(chunked, values, atol=1e-5)
    if grad:
        actual = _gradients(model, chunked)
        assert max(float((actual[name] - expected[name]).abs().max()) for name in expected) < 1e-5
