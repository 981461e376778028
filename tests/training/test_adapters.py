"""Adapters composed into one, and merged into the files of their base."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from carevl.errors import UserError
from carevl.models.stored_weights import INDEX, stored_dtype, weight_files
from carevl.training.adapters import Adapter, Rounding, compose, merge

pytestmark = pytest.mark.train


def _load(directory, dtype=torch.float32):
    return hf.AutoModelForImageTextToText.from_pretrained(directory, dtype=dtype)


def _adapter(judge, directory, seed, targets, rank, size):
    """An adapter with random weights on both sides; `size` is about that of B."""
    torch.manual_seed(seed)
    model = get_peft_model(_load(judge), LoraConfig(r=rank, lora_alpha=24, target_modules=targets))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=size)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def pair(judge, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    modules = r"model\.language_model\.layers\.\d+\."
    first = _adapter(judge, directory / "first", 1, modules + r"self_attn\.[qv]_proj", 8, 0.05)
    second = _adapter(judge, directory / "second", 2, modules + r"(self_attn\.q_proj|mlp\.down_proj)", 4, 0.05)
    for adapter in (first, second):
        read = Adapter.read(adapter)
        Adapter({**read.config, "target_modules": read.modules}, read.tensors).write(adapter)
    return first, second


@pytest.fixture(scope="module")
def halved(judge, tmp_path_factory):
    """The judge in bfloat16, in several files."""
    directory = tmp_path_factory.mktemp("halved")
    _load(judge, torch.bfloat16).save_pretrained(directory, max_shard_size="300KB")
    hf.AutoProcessor.from_pretrained(judge).save_pretrained(directory)
    return directory


def _logits(model):
    torch.manual_seed(0)
    ids = torch.randint(5, 100, (2, 40))
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_one_adapter_does_what_two_do_side_by_side(judge, pair, tmp_path):
    first, second = pair
    both = PeftModel.from_pretrained(_load(judge), first, adapter_name="first")
    alone = _logits(both)
    both.load_adapter(second, adapter_name="second")
    both.base_model.set_adapter(["first", "second"])
    expected = _logits(both)
    compose([Adapter.read(first), Adapter.read(second)], str(judge)).write(tmp_path / "one")
    composed = PeftModel.from_pretrained(_load(judge), tmp_path / "one")
    assert composed.peft_config["default"].r == 12
    assert (expected - alone).abs().max() > 0.1
    assert (_logits(composed) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_in_float32_it_is_merged_as_peft_merges_it(judge, pair, tmp_path):
    first, _ = pair
    rounding = merge(judge, Adapter.read(first), tmp_path)
    merged = _load(tmp_path).state_dict()
    expected = PeftModel.from_pretrained(_load(judge), first).merge_and_unload(safe_merge=True).state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert rounding.dtype == "float32"
    assert rounding.overall < 1e-4


def test_in_bfloat16_it_is_rounded_once_file_by_file(halved, pair, tmp_path):
    first, second = pair
    adapter = compose([Adapter.read(first), Adapter.read(second)], "")
    rounding = merge(halved, adapter, tmp_path)
    files = weight_files(halved)
    assert len(files) > 2
    assert [file.name for file in weight_files(tmp_path)] == [file.name for file in files]
    assert (tmp_path / INDEX).read_text() == (halved / INDEX).read_text()
    before = {name: w for file in files for name, w in load_file(file).items()}
    after = {name: w for file in weight_files(tmp_path) for name, w in load_file(file).items()}
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert stored_dtype(tmp_path) == stored_dtype(halved) == "bfloat16"
    errors, changes = 0.0, 0.0
    for module in adapter.modules:
        stored = module.replace("model.language_model.", "model.") + ".weight"
        a, b = adapter.factors(module)
        exact = before.pop(stored).double() + adapter.scale * b.double() @ a.double()
        assert ((after[stored].double() - exact).abs() <= 2**-8 * exact.abs() + 1e-9).all()
        errors += float((after[stored].double() - exact).square().sum())
        changes += float((b.double() @ a.double()).square().sum())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert rounding.overall == pytest.approx((errors / changes) ** 0.5, rel=1e-3)
    assert rounding.largest >= rounding.overall
    assert rounding.weight in adapter.modules


def test_a_change_too_small_for_the_format_is_warned_of(halved, pair, tmp_path):
    whole = Adapter.read(pair[0])
    tiny = Adapter({**whole.config, "lora_alpha": 1e-4 * whole.config["lora_alpha"]}, whole.tensors)
    rounding = merge(halved, tiny, tmp_path)
    assert 0.9 < rounding.overall < 1.1
    assert rounding.line().startswith("warning: merging into bfloat16 lost ")
    assert "judge.serve: adapter" in rounding.line()
    rounding.write(tmp_path / "rounding.json")
    assert Rounding.read(tmp_path / "rounding.json") == rounding
    assert Rounding.read(tmp_path / "nothing.json") is None
    assert "warning" not in Rounding(0.05, 0.2, "q_proj", "bfloat16").line()


def test_an_adapter_of_another_model_is_refused(judge, pair, tmp_path):
    whole = Adapter.read(pair[0])
    tensors = {name.replace("layers.0", "layers.99"): tensor for name, tensor in whole.tensors.items()}
    with pytest.raises(UserError, match=r"layers\.99\.self_attn\.q_proj, which is no module of the base"):
        merge(judge, Adapter(whole.config, tensors), tmp_path)
