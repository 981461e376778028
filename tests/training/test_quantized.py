"""Bases in 4 and 8 bits under adapters: which layers, that they are trained, and what both phases make of them."""

import pytest
import torch
import transformers as hf

from carevl.settings.training import Lora, Training
from carevl.training.judge import load_judge
from carevl.training.reference import Reference
from carevl.training.skeleton import load_skeleton
from carevl.training.trainable import changed_weights, find_quantizable, make_trainable
from carevl.training.trial import try_packing
from tests.helpers.families import FAMILIES

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed; it is in the extras")

pytestmark = pytest.mark.train

QUICK = ("qwen2_vl", "internvl", "qwen3_vl_moe")
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly) for name in FAMILIES]
CLASSES = {4: bitsandbytes.nn.Linear4bit, 8: bitsandbytes.nn.Linear8bitLt}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", ALL)
def test_linear_layers_of_the_language_model_alone_have_fewer_bits_and_their_adapters_learn(
    family, bits, family_directory
):
    directory = family_directory(family)
    skeleton = load_skeleton(directory)
    training = Training(lora=Lora(rank=4, alpha=8, base_bits=bits))
    quantizable = set(find_quantizable(skeleton))
    model = load_judge(directory, "float32", bits)
    assert {name for name, module in model.named_modules() if isinstance(module, CLASSES[bits])} == quantizable
    trained = changed_weights(skeleton, training)
    assert {f"{name}.weight" for name in quantizable} <= trained
    assert len(quantizable) >= len(trained) / 2
    processor = hf.AutoProcessor.from_pretrained(directory)
    difference = try_packing(model, processor).difference
    assert difference is None or difference < (1e-3 if bits == 4 else 0.2)  # in 8 bits inputs are rounded, by batches
    wrapped = make_trainable(model, training)
    learned = {name: weight for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert sum(".lora_A." in name for name in learned) == len(trained)
    assert {weight.dtype for weight in learned.values()} == {torch.float32}


def _lora(bits):
    return {"lora": Lora(rank=8, alpha=16, base_bits=bits)}


@pytest.mark.parametrize("bits", [4, 8])
def test_both_phases_train_adapters_on_it(begin, judge, sft_rows, dpo_rows, quick, tmp_path, bits):
    loop, _ = begin("sft", sft_rows, quick(epochs=10, **_lora(bits)), out=tmp_path / "sft")
    curve = [loop.step(k)["loss"] for k in range(loop.config.schedule.steps)]
    assert curve[-1] < 0.8 * curve[0]
    loop.export()
    adapter = tmp_path / "sft" / "adapter"
    training = quick(epochs=10, learning_rate=3e-3, **_lora(bits))
    rows = Reference(judge, training, adapter)(dpo_rows)
    loop, _ = begin("dpo", rows, training, out=tmp_path / "dpo", adapter=adapter)
    curve = [loop.step(k) for k in range(loop.config.schedule.steps)]
    assert curve[0]["reference_gap"] < (1e-4 if bits == 4 else 0.03)  # in 8 bits inputs are rounded batch by batch
    assert curve[-1]["rewards/margins"] > 0.1


def test_what_is_merged_is_the_base_itself_with_the_adapter(begin, judge, sft_rows, quick, tmp_path):
    loop, _ = begin("sft", sft_rows, quick(epochs=10, **_lora(4)), out=tmp_path / "out")
    for k in range(loop.config.schedule.steps):
        loop.step(k)
    loop.export()
    whole, _ = begin("sft", sft_rows, quick(**_lora(None)), adapter=tmp_path / "out/adapter", out=tmp_path / "whole")
    merged, _ = begin("sft", sft_rows, quick(), judge=tmp_path / "out/judge", out=tmp_path / "merged")
    losses = [
        loop.judge.eval()(loop.items.collate(range(len(loop.items)), loop.processor, loop.judge.model, "shared"))
        for loop in (whole, merged)
    ]
    assert torch.allclose(losses[0], losses[1], atol=1e-4)


def test_a_base_as_before_is_found_again_and_one_in_fewer_bits_is_another_training():
    assert "base_bits" not in Training().learned()["lora"]
    assert Training(lora=Lora(base_bits=4)).learned()["lora"]["base_bits"] == 4


def test_zero_3_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"zero.stage: 3 spreads no weights of fewer bits"):
        Training.model_validate({"lora": {"base_bits": 4}, "zero": {"stage": 3}})
