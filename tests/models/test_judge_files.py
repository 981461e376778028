"""Whatever keeps a model from becoming a judge is refused in one sentence, by the files of its directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from carevl.errors import UserError
from carevl.models.judge_files import check_directory, check_judge
from carevl.models.locate import locate


def _unlink(*names):
    def change(judge):
        for name in names:
            (judge / name).unlink()

    return change


def _write(name, text):
    return lambda judge: (judge / name).write_text(text)


def _configure(file, **fields):
    """Changes fields of a JSON file, or of its group `text_config`."""

    def change(judge):
        content = json.loads((judge / file).read_text())
        group = content.get("text_config", content)
        for name, value in fields.items():
            (group if name in group else content)[name] = value
        (judge / file).write_text(json.dumps(content))

    return change


def _rename_tensors(old, new):
    def change(judge):
        from safetensors.torch import load_file, save_file

        weights = load_file(judge / "model.safetensors")
        changed = {name.replace(old, new): weight for name, weight in weights.items()}
        save_file(changed, judge / "model.safetensors", {"format": "pt"})

    return change


def _cut(judge):
    data = (judge / "model.safetensors").read_bytes()
    (judge / "model.safetensors").write_bytes(data[:20])


def _index_two(judge):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (judge / "model.safetensors.index.json").write_text(json.dumps(index))


def _without_tokenizer(**config):
    def change(judge):
        (judge / "tokenizer.json").unlink()
        _configure("tokenizer_config.json", **config)(judge)

    return change


def _of_mistral_common(judge):
    (judge / "tokenizer.json").rename(judge / "tekken.json")


REFUSALS = {
    "no chat template": (
        _unlink("chat_template.jinja"),
        " has no chat template; a judge needs its chat_template.jinja",
    ),
    "no image processor": (
        _unlink("processor_config.json"),
        " has no image processor; a judge needs its preprocessor_config.json",
    ),
    "no safetensors": (_unlink("model.safetensors"), " has no safetensors weights"),
    "a configuration that is no JSON": (_write("config.json", "{"), "/config.json"),
    "a configuration that names no model": (_write("config.json", "{}"), "/config.json names no model_type"),
    "a configuration that no model has": (
        _configure("config.json", hidden_size="large"),
        "/config.json is refused by transformers: ",
    ),
    "an adapter beside the weights": (
        _write("adapter_config.json", "{}"),
        " carries an adapter (adapter_config.json), which would be loaded into the judge unseen; merge it first,",
    ),
    "weights as PEFT wraps them": (
        _rename_tensors("q_proj.weight", "q_proj.base_layer.weight"),
        " stores weights of adapters (",
    ),
    "a shard that is missing": (
        _index_two,
        " lacks model-00002-of-00002.safetensors, which its index",
    ),
    "a damaged file of weights": (_cut, ": a file of its weights is damaged ("),
    "a layer that is not stored": (
        _rename_tensors("layers.1.", "layers.7."),
        " holds the weights of another architecture than its config.json describes: model.language_model.layers.1.",
    ),
    "a larger vocabulary than is stored": (
        _configure("config.json", vocab_size=5000),
        " holds the weights of another architecture than its config.json describes: lm_head.weight is stored as [",
    ),
    "a slow tokenizer": (
        _without_tokenizer(tokenizer_class="ByT5Tokenizer"),
        " has a slow tokenizer only (ByT5Tokenizer), which cannot tell the characters of a token;",
    ),
    "a tokenizer of mistral-common": (
        _of_mistral_common,
        " has a tokenizer of mistral-common only (tekken.json); a judge needs a tokenizer.json",
    ),
    "a broken tokenizer": (_write("tokenizer.json", "{"), " has no processor that loads: "),
}


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    shutil.copytree(locate("miniworld:judge"), tmp_path / "judge")
    return tmp_path / "judge"


def test_a_judge_is_let_through(judge):
    check_judge(str(judge))
    check_judge("miniworld:judge")


@pytest.mark.parametrize(("change", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_a_judge_is_refused_in_one_sentence(judge, change, sentence):
    change(judge)
    with pytest.raises(UserError) as refusal:
        check_judge(str(judge))
    assert str(refusal.value).startswith(f"{judge}{sentence}")
    assert "\n" not in str(refusal.value)


def test_a_text_model_is_told_that_it_reads_no_images(judge):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(locate("miniworld:expert-llama")) / name, judge / name)
    with pytest.raises(UserError, match="is a llama model, which does not read images; a judge is a vision-language"):
        check_directory(judge)


def test_only_other_formats_are_named(judge):
    (judge / "model.safetensors").rename(judge / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no safetensors weights, only pytorch_model\.bin; convert them"):
        check_directory(judge)
    check_directory(judge, weights=False)


def test_a_hub_model_that_is_not_here_is_not_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    check_judge("org/judge", "a" * 40)
    assert not list(tmp_path.iterdir())
