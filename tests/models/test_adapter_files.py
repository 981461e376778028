"""An adapter is put on the base that it was trained on, wherever that lies, and on no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from carevl import RewardModel
from carevl.errors import UserError
from carevl.miniworld.weights import WEIGHTS
from carevl.models.adapter_files import check_adapter, put_on, read_base, write_base
from carevl.models.locate import weights_fingerprint
from carevl.settings.models import Judge
from tests.helpers.damaged_files import WAYS

BASE = WEIGHTS / "judge"
LAYERS = r"model\.language_model\.layers\.\d+\.self_attn\.q_proj"


def _load(directory: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(directory)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    directory = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    get_peft_model(_load(BASE), LoraConfig(r=4, target_modules=LAYERS)).save_pretrained(directory)
    return directory


@pytest.fixture
def adapter(stored: Path, tmp_path: Path) -> Path:
    """One that may be changed."""
    shutil.copytree(stored, tmp_path / "adapter")
    return tmp_path / "adapter"


def _name(adapter: Path, base: str | None) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base}))


def _check(adapter: Path, base: Path | str = "miniworld:judge") -> None:
    check_adapter(Judge(path=str(base), adapter=str(adapter)))


@pytest.mark.parametrize("name", ["miniworld:judge", str(BASE), "/gone/since/judge/", "someone/Judge", None, ""])
def test_an_adapter_of_the_base_by_name_is_taken(adapter: Path, name: str | None) -> None:
    _name(adapter, name)
    _check(adapter)


def test_names_in_the_cache_of_the_hub_are_those_of_the_models(adapter: Path) -> None:
    _name(adapter, f"/home/somebody/.cache/huggingface/hub/models--org--judge/snapshots/{'0f' * 20}")
    _check(adapter)


def test_an_adapter_of_another_base_by_name_is_refused_with_the_way_out(adapter: Path) -> None:
    _name(adapter, "org/another")
    with pytest.raises(
        UserError, match=r"adapter of org/another, and the judge is miniworld:judge; give that base, or"
    ):
        _check(adapter)
    with pytest.raises(UserError, match="adapter of org/another"):
        RewardModel("miniworld:judge", adapter=str(adapter))


def test_the_fingerprint_decides_where_training_kept_it(adapter: Path, tmp_path: Path) -> None:
    _name(adapter, "org/another")
    write_base(adapter, weights_fingerprint("miniworld:judge", None))
    moved = tmp_path / "moved" / "elsewhere"
    shutil.copytree(BASE, moved)
    _check(adapter, moved)
    assert read_base(adapter) == weights_fingerprint(str(moved), None)
    _name(adapter, "miniworld:judge")
    write_base(adapter, "0" * 16)
    with pytest.raises(UserError, match=r"was trained on other weights \(0{16}\) than those of miniworld:judge"):
        _check(adapter)


def test_names_decide_where_one_base_is_known_by_its_id_alone(adapter: Path) -> None:
    write_base(adapter, "org/judge@main")
    _name(adapter, "org/judge")
    _check(adapter)
    _name(adapter, "org/another")
    with pytest.raises(UserError, match="adapter of org/another"):
        _check(adapter)


def test_an_adapter_of_other_sizes_is_refused(stored: Path, family_directory: Any, tmp_path: Path) -> None:
    other = tmp_path / "judge"
    shutil.copytree(family_directory("qwen2_vl"), other)
    with pytest.raises(UserError, match=r"does not fit .*q_proj has \d+ in_features there, and 128 in the adapter"):
        _check(stored, other)
    with pytest.raises(UserError, match="does not fit the model that it is put on"):
        put_on(_load(other), stored)


def test_an_adapter_that_lacks_weights_of_its_own_is_refused(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="does not fit the model that it is put on: Found missing adapter keys"):
        put_on(_load(BASE), adapter)


def test_a_configuration_that_is_none_is_refused(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"adapter_config\.json is no configuration of an adapter"):
        _check(adapter)


@pytest.mark.parametrize(
    ("file", "way"),
    [
        *((file, way) for file in ("adapter_config.json", "adapter_model.safetensors") for way in WAYS),
        *(("base.json", way) for way in WAYS if way != "deleted"),  # then its name decides
    ],
)
def test_a_damaged_adapter_ends_in_a_sentence_that_names_it(adapter: Path, file: str, way: str) -> None:
    write_base(adapter, weights_fingerprint("miniworld:judge", None))
    WAYS[way](adapter / file)
    with pytest.raises(UserError) as raised:
        RewardModel("miniworld:judge", adapter=str(adapter))
    assert str(adapter) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [None, [], {"peft_type": "LORA"}, {"peft_type": "NONE"}, {"peft_type": 3}, "text"])
def test_a_configuration_that_is_none_ends_in_a_sentence_that_names_it(adapter: Path, value: object) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(value))
    with pytest.raises(UserError) as raised:
        RewardModel("miniworld:judge", adapter=str(adapter))
    assert str(adapter) in str(raised.value)
