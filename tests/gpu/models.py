"""Random models in the sizes that people use, and rows for them; small ones for a CPU."""

from __future__ import annotations

from typing import Any

import torch

from carevl.models.families.base import Picture
from carevl.models.packing import Packed, Tree, pack
from tests.gpu.figures import Check

H100_FLOPS = 989e12
"""Of an H100 in bfloat16, a second."""


class TextModel:
    """All that `pack` asks of a model that reads texts."""

    class config:  # noqa: N801
        """It has no `vision_config`."""


def make_judge(check: Check) -> Any:
    """Return a Qwen2.5-VL of 7B with random bfloat16 weights, attention by the model's own sdpa."""
    import transformers

    config = transformers.Qwen2_5_VLConfig()
    vocabulary = 1024 if check.small else 152064
    config.image_token_id, config.video_token_id = vocabulary - 1, vocabulary - 2
    config.vision_start_token_id, config.vision_end_token_id = vocabulary - 3, vocabulary - 4
    text, vision = config.text_config, config.vision_config
    sizes: dict[str, Any] = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4}
    section = [16, 24, 24]
    if check.small:
        sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
        heads, section = {"num_attention_heads": 4, "num_key_value_heads": 2}, [8, 12, 12]
        small = {"depth": 2, "hidden_size": 64, "num_heads": 4, "intermediate_size": 128, "fullatt_block_indexes": [1]}
        for name, value in small.items():
            setattr(vision, name, value)
    for name, value in {**sizes, **heads, "vocab_size": vocabulary}.items():
        setattr(text, name, value)
    text.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    text.layer_types = ["full_attention"] * text.num_hidden_layers
    text.tie_word_embeddings = config.tie_word_embeddings = False
    vision.out_hidden_size = text.hidden_size
    return _random(transformers.Qwen2_5_VLForConditionalGeneration, config, check)


def make_qwen3_judge(check: Check) -> Any:
    """Return a Qwen3-VL of 2B with random bfloat16 weights, attention by the model's own sdpa."""
    import transformers

    vocabulary = 1024 if check.small else 151936
    text: dict[str, Any] = {
        "hidden_size": 256 if check.small else 2048,
        "intermediate_size": 512 if check.small else 6144,
        "num_hidden_layers": 4 if check.small else 28,
        "num_attention_heads": 4 if check.small else 16,
        "num_key_value_heads": 2 if check.small else 8,
        "head_dim": 64 if check.small else 128,
        "vocab_size": vocabulary,
        "pad_token_id": 0,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [12, 10, 10] if check.small else [24, 20, 20],
            "mrope_interleaved": True,
        },
    }
    vision: dict[str, Any] = {
        "depth": 3 if check.small else 24,
        "hidden_size": 64 if check.small else 1024,
        "intermediate_size": 128 if check.small else 4096,
        "num_heads": 4 if check.small else 16,
        "out_hidden_size": text["hidden_size"],
        "deepstack_visual_indexes": [0, 1] if check.small else [5, 11, 17],
        "patch_size": 16,
    }
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = {name: vocabulary - 1 - n for n, name in enumerate(names)}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
    return _random(transformers.Qwen3VLForConditionalGeneration, config, check)


def language_weights(model: Any) -> int:
    """Return the weights of the language model's layers, adapters left out."""
    layers = model.base_model.get_decoder().layers
    return sum(weight.numel() for weight in layers.parameters() if not weight.requires_grad)


def make_scorer(check: Check) -> Any:
    """Return a Llama reward model of 8B with random bfloat16 weights."""
    import transformers

    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    if check.small:
        sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 1000}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, **heads, num_labels=1, pad_token_id=0, max_position_embeddings=8192)
    return _random(transformers.LlamaForSequenceClassification, config, check).eval()


def _random(kind: Any, config: Any, check: Check) -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(check.device):
            return kind._from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(torch.float32)


def text_trees(tokens: int, seed: int, vocabulary: int = 1000) -> list[Tree]:
    """Return trees of two branches, of so many tokens together."""
    rng = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(5, vocabulary, (n,), generator=rng).tolist()

    trees = []
    while tokens > 0:
        prefix = int(torch.randint(40, 600, (1,), generator=rng))
        branches = torch.randint(5, 120, (2,), generator=rng).tolist()
        prefix = max(1, min(prefix, tokens - sum(branches)))
        trees.append(Tree(ids(prefix), [ids(n) for n in branches]))
        tokens -= prefix + sum(branches)
    return trees


def judge_row(model: Any, check: Check, pairs: int, seed: int = 0) -> Packed:
    """Return pairs of judgments in a row on the device."""
    trees, pictures = judge_trees(model, check, pairs, seed)
    return pack(trees, model, pictures).to(check.device)


def judge_trees(model: Any, check: Check, pairs: int, seed: int = 0) -> tuple[list[Tree], list[Picture]]:
    """Return pairs of judgments of 70 tokens, each about an image of 640 x 480 pixels: some 780 tokens a pair."""
    config = model.config
    side = config.vision_config.patch_size
    rows, columns = (8, 8) if check.small else (480 // side // 2 * 2, 640 // side // 2 * 2)
    rng = torch.Generator().manual_seed(seed)
    trees, pictures = [], []

    def words(n: int) -> list[int]:
        return torch.randint(5, config.vision_end_token_id, (n,), generator=rng).tolist()

    for n in range(pairs):
        patches = torch.randn(rows * columns, 3 * 2 * side**2, generator=rng)
        pictures.append(Picture({"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, columns]])}))
        image = [config.image_token_id] * (rows * columns // 4)
        prefix = [*words(20), config.vision_start_token_id, *image, config.vision_end_token_id, *words(230)]
        trees.append(Tree(prefix, [words(70), words(70)], f"{seed}-{n}"))
    return trees, pictures
