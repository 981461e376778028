"""`carevl check`: what a model is as a judge, for every family, with its weights here and without them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest

from carevl.cli.app import run_here
from carevl.errors import UserError
from carevl.models.locate import locate
from carevl.models.memory import free_memory
from carevl.training.inspection import inspect_judge, show_tokens
from carevl.training.random_layers import shorten
from carevl.training.skeleton import load_skeleton
from tests.helpers.families import FAMILIES, PLAIN, VARIANTS

FACTS = ("family", "packing", "difference", "lora_modules", "vision_frozen", "image_tokens")


def _carevl(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["carevl", *map(str, words)])
    try:
        run_here()
    except SystemExit as ended:
        return ended.code or 0
    return 0


def _without_weights(directory: Path, target: Path, **text) -> Path:
    shutil.copytree(directory, target, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((target / "config.json").read_text())
    config["text_config"] |= text
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.fixture(scope="module")
def inspected(family_directory):
    """The inspection of a family, made once."""
    return cache(lambda family: inspect_judge(str(family_directory(family))))


@pytest.mark.parametrize("family", [*FAMILIES, *VARIANTS])
def test_a_model_of_every_family_is_a_judge(family, inspected):
    found = inspected(family)
    assert found.weights == "loaded"
    assert found.packing == ("plain" if family in PLAIN else "shared")
    assert (found.packing_reason is None) == (family not in PLAIN)
    assert found.difference is None if family in PLAIN else found.difference < 1e-4
    assert found.lora_modules > 0
    assert 0 < found.vision_frozen == found.vision_tensors
    assert found.image_tokens > 0
    assert [name for name, text in found.prompts.items() if "Look at the image. Question: " not in text] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_without_its_weights_two_random_layers_tell_the_same(family, inspected, family_directory, tmp_path):
    whole = inspected(family)
    found = inspect_judge(str(_without_weights(family_directory(family), tmp_path / "judge")))
    assert found.weights == "not on this machine; two random layers of the same configuration stand for them"
    for name in ("family", "packing", "lora_modules", "vision_frozen", "image_tokens", "prompts"):
        assert getattr(found, name) == getattr(whole, name), name
    assert found.difference is None if family in PLAIN else found.difference < 1e-4


@pytest.mark.parametrize(("family", "packing"), [("qwen2_5_vl", "shared"), ("qwen3_5", "plain")])
def test_adapters_are_counted_over_all_layers_though_two_are_tried(
    family, packing, inspected, family_directory, tmp_path
):
    directory = family_directory(family)
    kinds = json.loads((directory / "config.json").read_text())["text_config"]["layer_types"]
    longer = {"num_hidden_layers": 6, "layer_types": [*[kinds[0]] * 5, kinds[1]]}
    found = inspect_judge(str(_without_weights(directory, tmp_path / "judge", **longer)))
    assert found.packing == packing
    assert found.lora_modules > 2 * inspected(family).lora_modules


def test_a_layer_of_each_kind_is_kept_with_what_is_said_of_it():
    kinds = ["chunked_attention", "chunked_attention", "chunked_attention", "full_attention"]
    text = {"num_hidden_layers": 4, "layer_types": kinds, "no_rope_layers": [1, 1, 1, 0], "moe_layers": [0, 1, 2, 3]}
    assert shorten({"text_config": text, "vision_config": {"depth": 9}}) == {
        "text_config": {
            "num_hidden_layers": 2,
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
            "moe_layers": [0, 1],
        },
        "vision_config": {"depth": 9},
    }
    crossed = shorten({"text_config": {"num_hidden_layers": 8, "cross_attention_layers": [3, 6]}})
    assert crossed["text_config"] == {"num_hidden_layers": 2, "cross_attention_layers": [1]}


def test_tokens_are_shown_once_with_their_number():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate("miniworld:judge"))
    text = f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>Two.<|im_end|>"
    shown = show_tokens(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert shown == "<|im_start|>user\n<|vision_start|><|image_pad|> x 6<|vision_end|>Two.<|im_end|>"


def test_the_command_prints_the_facts_and_a_prompt_of_each_task(monkeypatch, capsys):
    assert _carevl(monkeypatch, "check", "miniworld:judge") == 0
    shown = capsys.readouterr().out
    assert [name for name in FACTS if not any(line.startswith(name) for line in shown.splitlines())] == []
    for task in ("pairwise", "pointwise", "ranking"):
        assert f"\n{task}, " in shown
    assert "<|vision_start|><|image_pad|> x " in shown


def test_as_json_it_is_one_object(monkeypatch, capsys):
    assert _carevl(monkeypatch, "check", "miniworld:judge", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(FACTS) <= found.keys()
    assert (found["family"], found["packing"]) == ("qwen2_vl", "shared")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("miniworld:expert-llama", " is a llama model, which does not read images; a judge is a vision-language model"),
        ("org/not-here", "org/not-here: there is no such directory, and no hub model of that id is on this machine"),
    ],
)
def test_what_cannot_be_a_judge_ends_with_status_2_and_one_sentence(model, sentence, monkeypatch, capsys):
    assert _carevl(monkeypatch, "check", model) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    assert sentence in line


def test_the_configuration_alone_in_the_cache_is_enough(family_directory, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--judge"
    _without_weights(family_directory("qwen2_vl"), repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    before = sorted(tmp_path.rglob("*"))
    assert inspect_judge("org/judge").weights.startswith("not on this machine")
    assert sorted(tmp_path.rglob("*")) == before


def _with_large_weights(directory: Path, target: Path, layers: int, size: int) -> Path:
    """Copy a model with so many layers, whose weights take up `size` bytes or more; they are holes in a file."""
    per_layer = size // layers // (3 * 64 * 4)
    _without_weights(directory, target, num_hidden_layers=layers, layer_types=None, intermediate_size=per_layer)
    header, end = {}, 0
    for name, weight in load_skeleton(target).state_dict().items():
        begin, end = end, end + weight.nbytes
        header[name] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (target / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return target


def test_weights_that_memory_is_too_small_for_are_not_loaded(family_directory, tmp_path):
    judge = _with_large_weights(family_directory("qwen2_5_vl"), tmp_path / "judge", 400, free_memory())
    found = inspect_judge(str(judge))
    assert re.fullmatch(
        r"its weights take \d+\.\d GB as float32, and \d+\.\d GB of memory are free; "
        "two random layers of the same configuration stand for them",
        found.weights,
    )
    assert found.packing == "shared"
    assert found.lora_modules == 400 * 7


def test_layers_that_memory_is_too_small_for_are_not_made(family_directory, tmp_path):
    judge = _with_large_weights(family_directory("qwen2_5_vl"), tmp_path / "judge", 3, 2 * free_memory())
    with pytest.raises(UserError, match=r"even two layers of .* take \d+\.\d GiB, and \d+\.\d GiB of memory are free"):
        inspect_judge(str(judge))


def test_weights_in_another_format_are_not_taken_for_missing(family_directory, tmp_path):
    judge = _without_weights(family_directory("qwen2_vl"), tmp_path / "judge")
    (judge / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"has no safetensors weights, only pytorch_model\.bin"):
        inspect_judge(str(judge))
