"""Random models in the sizes that people use, and rows for them; small ones for a CPU."""

from __future__ import annotations

from typing import Any

import torch

from carevl.models.families.base import Picture
from carevl.models.packing import Packed, Tree, pack
from tests.gpu.figures import Check

_PATCH_NUMBERS = 1176  # 3 colours, 2 frames, 14 x 14 pixels


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
    """Return pairs of judgments of 70 tokens, each about an image of 640 x 480 pixels: some 780 tokens a pair."""
    rows, columns = (8, 8) if check.small else (34, 46)
    rng = torch.Generator().manual_seed(seed)
    config, trees, pictures = model.config, [], []

    def words(n: int) -> list[int]:
        return torch.randint(5, config.vision_end_token_id, (n,), generator=rng).tolist()

    for n in range(pairs):
        name = f"{seed}-{n}"
        patches = torch.randn(rows * columns, _PATCH_NUMBERS, generator=rng)
        pictures.append(Picture({"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, columns]])}))
        image = [config.image_token_id] * (rows * columns // 4)
        prefix = [*words(20), config.vision_start_token_id, *image, config.vision_end_token_id, *words(230)]
        trees.append(Tree(prefix, [words(70), words(70)], name))
    return pack(trees, model, pictures).to(check.device)
