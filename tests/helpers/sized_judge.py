"""A Qwen2.5-VL of any size with random weights, and rows to train it on: for what memory and time are measured by."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZES = {
    "0.1B": (640, 10, 1728, 10, 2, 32_000),
    "0.5B": (1024, 24, 4864, 16, 2, 32_000),
    "1.5B": (1536, 28, 8960, 12, 2, 60_000),
    "3B": (2048, 36, 11_008, 16, 2, 151_936),
    "8B": (3584, 28, 18_944, 28, 4, 152_064),
}
"""Hidden size, layers, intermediate size, heads, heads of keys and values, vocabulary of language models; 3B and 8B are
those of Qwen2.5-VL-3B and -7B, whose output matrix is no embedding."""
_TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
"""The vision tower of both."""


def write_sized_judge(directory: Path, size: str, dtype: str, *, weights: bool = True) -> Path:
    """Write a judge; an image of 112 x 112 pixels has 16 tokens. 3B and 8B have their whole vision tower.

    Args:
        weights: whether it has any; else configuration and processor alone.
    """
    import torch
    import transformers as hf

    from tests.helpers.families.qwen import qwen2_5_vl

    hidden, layers, intermediate, heads, kv_heads, vocabulary = SIZES[size]
    parts = qwen2_5_vl()
    half = hidden // heads // 2
    config = parts.model.config.to_dict()
    config["text_config"] |= {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "layer_types": ["full_attention"] * layers,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8],
        },
    }
    whole, tied = size in ("3B", "8B"), size != "8B"
    config["vision_config"] |= {"out_hidden_size": hidden} | (_TOWER if whole else {})
    config["text_config"]["tie_word_embeddings"] = tied
    config = hf.Qwen2_5_VLConfig.from_dict(config | {"tie_word_embeddings": tied, "dtype": dtype})
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.save_pretrained(directory)
    parts.model.generation_config.save_pretrained(directory)
    parts.processor.save_pretrained(directory)
    if weights:
        with torch.device("meta"):
            model = hf.Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=getattr(torch, dtype))
        _write_weights(model, directory, tied=tied)
    return directory


def _write_weights(model: Any, directory: Path, *, tied: bool) -> None:
    """Write random weights of a model that has none, a shard at a time, under the names of published files."""
    import torch
    from safetensors.torch import save_file
    from transformers.core_model_loading import revert_weight_conversion

    generator = torch.Generator().manual_seed(0)
    shard: dict[str, Any] = {}
    index: dict[str, str] = {}
    shards = 0

    def close() -> None:
        nonlocal shards
        shards += 1
        name = f"model-{shards:05d}.safetensors"
        save_file(shard, directory / name, {"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, weight in model.named_parameters():
        if tied and name == "lm_head.weight":
            continue
        drawn = torch.ones(weight.shape, dtype=weight.dtype)
        if weight.ndim > 1:
            drawn = torch.empty(weight.shape, dtype=weight.dtype).uniform_(-0.03, 0.03, generator=generator)
        for stored, value in revert_weight_conversion(model, {name: drawn}).items():
            shard[stored] = value.contiguous()
        if sum(value.nbytes for value in shard.values()) > 2e9:
            close()
    if shard:
        close()
    sizes = {"total_size": sum(file.stat().st_size for file in directory.glob("*.safetensors"))}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": sizes, "weight_map": index}))


def write_pairs(directory: Path, n: int, words: int = 70) -> tuple[Path, Path]:
    """Write n targets of phase 1, and n pairs of phase 2, of some 500 tokens each; return both files."""
    from carevl.judging.prompts import judge_prompt, write_judgment

    rng, rows = random.Random(0), []
    names = ["red", "circle", "left", "of", "the", "two", "blue", "squares", "above", "there"]
    for number in range(n):
        picture = io.BytesIO()
        Image.new("RGB", (112, 112), (number % 256, 90, 90)).save(picture, "PNG")
        responses = [" ".join(rng.choices(names, k=words)) for _ in range(2)]
        evidence = " ".join(rng.choices(names, k=30))
        rows.append(
            {
                "item_id": str(number),
                "image": picture.getvalue(),
                "prompt": judge_prompt("pairwise", "What?", responses),
            }
            | {"target": write_judgment(evidence, winner=1), "chosen": write_judgment(evidence, winner=1)}
            | {"rejected": write_judgment(evidence, winner=2), "reference_chosen": -50.0, "reference_rejected": -50.0}
        )
    table, common = pa.Table.from_pylist(rows), ["item_id", "image", "prompt"]
    pq.write_table(table.select([*common, "target"]), directory / "targets.parquet")
    columns = [*common, "chosen", "rejected", "reference_chosen", "reference_rejected"]
    pq.write_table(table.select(columns), directory / "pairs.parquet")
    return directory / "targets.parquet", directory / "pairs.parquet"
