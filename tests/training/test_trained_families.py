"""Every family of vision-language models: what is trained of it, and what was trained as files."""

import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors import safe_open

from carevl.models.locate import Weights
from carevl.models.stored_weights import weight_files
from carevl.settings.training import Lora, Training
from carevl.training.adapters import Adapter, compose
from carevl.training.judge import export
from carevl.training.reference import Reference
from carevl.training.skeleton import load_skeleton
from carevl.training.stored_layout import StoredLayout
from carevl.training.trainable import changed_weights, describe_trained, make_trainable
from carevl.training.validation import validate
from tests.helpers.families import FAMILIES, PLAIN, draw_picture

pytestmark = pytest.mark.train

QUICK = ("qwen2_vl", "internvl", "gemma3", "llama4", "qwen3_vl_moe")
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly) for name in FAMILIES]
MIXTURES = {"llama4": 2, "qwen3_vl_moe": 4, "glm4v_moe": 2, "qwen3_5_moe": 4}
"""Fused weights of experts in two layers: two in every layer that is a mixture."""
ADAPTERS = Training(lora=Lora(rank=4, alpha=8))
WHOLE = Training(lora=None)


def _load(directory):
    model, report = hf.AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def _inputs(directory, model):
    processor = hf.AutoProcessor.from_pretrained(directory)
    content = [{"type": "image"}, {"type": "text", "text": "How many red circles are there? Two. Three."}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    made = processor(text=[text], images=[[draw_picture()]], return_tensors="pt")
    made.pop("labels", None)
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in made.items()}


def _log_probabilities(model, inputs):
    """Of the prompt's last tokens, behind those of the image; float32 [12]."""
    logp = model(**inputs, use_cache=False).logits[0, -13:-1].float().log_softmax(-1)
    return logp.gather(1, inputs["input_ids"][0, -12:, None])[:, 0]


def _stored(directory):
    found = {}
    for file in weight_files(directory):
        with safe_open(file, "pt") as stream:
            found |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    return found


def _check_files(base, judge):
    """The judge has the base's tensors by name, shape and format, its configuration, and its processor."""
    before, after = _stored(base), _stored(judge)
    assert {name: (w.shape, w.dtype) for name, w in after.items()} == {n: (w.shape, w.dtype) for n, w in before.items()}
    assert (judge / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()
    old, new = hf.AutoConfig.from_pretrained(base).to_dict(), hf.AutoConfig.from_pretrained(judge).to_dict()
    assert old | {"_name_or_path": ""} == new | {"_name_or_path": ""}
    old, new = hf.AutoProcessor.from_pretrained(base), hf.AutoProcessor.from_pretrained(judge)
    assert new.chat_template == old.chat_template
    assert new.tokenizer.get_vocab() == old.tokenizer.get_vocab()
    assert new.tokenizer.special_tokens_map == old.tokenizer.special_tokens_map


@pytest.mark.parametrize("family", ALL)
def test_adapters_are_on_the_language_model_learn_and_are_what_is_saved_and_merged(family, family_directory, tmp_path):
    base = family_directory(family)
    described = describe_trained(load_skeleton(base), ADAPTERS)
    assert described.vision_frozen == described.vision > 0
    assert described.projector_frozen == described.projector > 0
    model = _load(base)
    inputs = _inputs(base, model)
    language = model.get_decoder()
    before = _log_probabilities(model, inputs).detach()
    outside = {id(w) for w in model.parameters()} - {id(w) for w in language.parameters()}
    trained = make_trainable(model, ADAPTERS)
    learned = {name: weight for name, weight in trained.named_parameters() if weight.requires_grad}
    assert not outside & {id(weight) for weight in learned.values()}
    assert {id(weight) for weight in learned.values()} <= {id(weight) for weight in language.parameters()}
    assert described.lora_modules == sum(".lora_A." in name for name in learned)
    assert described.lora_parameters == sum(weight.numel() for weight in learned.values())
    experts = {name for name in changed_weights(load_skeleton(base), ADAPTERS) if not name.endswith(".weight")}
    assert len(experts) == MIXTURES.get(family, 0)
    torch.manual_seed(0)
    for name, weight in learned.items():
        if ".lora_B." in name:  # zero in a new adapter, which would leave half of the gradients zero
            torch.nn.init.normal_(weight, std=0.05)
    values = _log_probabilities(model, inputs)
    values.sum().backward()
    assert [name for name, weight in learned.items() if weight.grad is None or not weight.grad.any()] == []
    assert (values - before).abs().max() > 0.01
    export(trained, None, Weights.of(str(base)), tmp_path)
    with torch.no_grad():
        merged = _log_probabilities(_load(tmp_path / "judge"), inputs)
        adapted = PeftModel.from_pretrained(_load(base), tmp_path / "adapter")
        assert (merged - values).abs().max() < 1e-5
        assert torch.equal(_log_probabilities(adapted, inputs), values)
        # Twice the adapter is one of twice the scale, also where factors of several experts lie in one tensor.
        adapter = Adapter.read(tmp_path / "adapter")
        compose([adapter, adapter], str(base)).write(tmp_path / "twice")
        Adapter({**adapter.config, "lora_alpha": 16}, adapter.tensors).write(tmp_path / "double")
        twice, double = (PeftModel.from_pretrained(_load(base), tmp_path / name) for name in ("twice", "double"))
        assert torch.allclose(_log_probabilities(twice, inputs), _log_probabilities(double, inputs), atol=2e-5)
    _check_files(base, tmp_path / "judge")


@pytest.mark.parametrize("family", ALL)
def test_all_weights_are_saved_as_the_files_of_the_base_hold_them(family, family_directory, tmp_path):
    base = family_directory(family)
    StoredLayout(base).check(changed_weights(load_skeleton(base), Training(lora=None, train="all")))
    model = make_trainable(_load(base), WHOLE)
    inputs = _inputs(base, model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    before = _log_probabilities(model, inputs)
    before.sum().backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    torch.optim.SGD(weights, lr=0.01).step()
    with torch.no_grad():
        values = _log_probabilities(model, inputs)
        assert (values - before).abs().max() > 1e-3
        assert export(model, None, Weights.of(str(base)), tmp_path) is None
        assert torch.allclose(_log_probabilities(_load(tmp_path / "judge"), inputs), values, atol=1e-5)
    _check_files(base, tmp_path / "judge")
    layout, old, new = StoredLayout(base), _stored(base), _stored(tmp_path / "judge")
    moved = {layout.weights[name] for name in old if not torch.equal(old[name], new[name])}
    assert moved
    assert moved <= changed_weights(layout.skeleton, WHOLE)


@pytest.mark.parametrize(
    "family", [pytest.param(n, marks=() if n in QUICK[-1:] else pytest.mark.nightly) for n in MIXTURES]
)
def test_a_mixture_goes_through_both_phases_with_the_same_curve_when_it_is_spread(
    family, family_directory, begin, sft_rows, dpo_rows, quick, tmp_path
):
    base, curves = family_directory(family), []
    for stage in (0, 3):
        out = tmp_path / str(stage)
        training = quick(lora=ADAPTERS.lora, batch_tokens=4000, zero={"stage": stage}, holdout=0.3)
        loop, errors = begin("sft", sft_rows, training, judge=base, out=out / "sft")
        assert errors == []
        assert ("fallback" in loop.remarks) == (family in PLAIN)
        validate(loop)
        steps = [loop.step(0)]
        loop.save(str(tmp_path / "checkpoint"), 1)
        loop.export()
        rows = Reference(base, training, out / "sft" / "adapter")(dpo_rows)
        begun = {"judge": base, "adapter": out / "sft" / "adapter", "out": out / "dpo"}
        second, _ = begin("dpo", rows, training.model_copy(update={"holdout": 0.0}), **begun)
        steps += [second.step(0), second.step(1)]
        assert steps[1]["reference_gap"] < 1e-4
        second.export()
        _check_files(base, out / "dpo" / "judge")
        inputs = _inputs(base, model := _load(out / "dpo" / "judge"))
        adapted = PeftModel.from_pretrained(_load(base), out / "dpo" / "adapter")
        with torch.no_grad():
            expected = _log_probabilities(adapted, inputs)
            assert (_log_probabilities(model, inputs) - expected).abs().max() < 1e-5
        curves.append([(step["loss"], step["gradient_norm"]) for step in steps])
        assert loop.load(str(tmp_path / "checkpoint")) == 1
    assert curves[0] == [pytest.approx(step, rel=1e-3) for step in curves[1]]
