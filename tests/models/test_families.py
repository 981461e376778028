"""Which architectures training serves, and what is said of the others before anything is loaded."""

import json
import subprocess
import sys

import huggingface_hub
import pytest

from carevl.errors import UserError
from carevl.models.families import FAMILIES, find_family, judge_family


def _directory(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").touch()
    return str(tmp_path)


def test_the_shipped_judge_has_a_family():
    assert judge_family("miniworld:judge") is FAMILIES["qwen2_vl"]


@pytest.mark.parametrize("model_type", ["qwen2_vl", "internvl", "paligemma"])
def test_a_family_is_found_by_the_configuration_alone(tmp_path, model_type):
    family = judge_family(_directory(tmp_path, json.dumps({"model_type": model_type})))
    assert family is FAMILIES[model_type]


def test_an_architecture_that_nobody_has_tried_gets_the_careful_ways():
    family = find_family("another_vl")
    assert (family.name, family.joins, family.embeds) == ("another_vl", False, False)


@pytest.mark.parametrize("config", ["", "[]", "{}"])
def test_a_configuration_that_names_no_architecture_is_refused(tmp_path, config):
    with pytest.raises(UserError, match="names no model_type"):
        judge_family(_directory(tmp_path, config))


def test_a_hub_model_is_looked_up_in_the_cache_and_never_fetched(tmp_path, monkeypatch):
    commit = "a" * 40
    snapshot = tmp_path / "models--org--judge" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "llava"}')
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert judge_family("org/another", commit) is None
    assert judge_family("org/judge", "b" * 40) is None
    assert judge_family("no hub id") is None
    assert judge_family("org/judge", commit) is FAMILIES["llava"]


def test_asking_loads_nothing_heavy():
    code = (
        "import sys; from carevl.models.families import judge_family; judge_family('miniworld:judge'); "
        "print([name for name in ('torch', 'transformers', 'vllm') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
