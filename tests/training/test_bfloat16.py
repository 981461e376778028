"""Training in bfloat16: against float32, in every stage of ZeRO, and what is served of it."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as hf
from deepspeed.utils import safe_get_full_grad
from peft import PeftModel

from carevl.models.locate import locate
from carevl.settings.loader import load_settings
from carevl.stages.base import RunContext
from carevl.store.run import Run
from carevl.store.stage_key import StageKey
from carevl.training.judge import load_judge, log_probabilities
from carevl.training.reference import Reference
from carevl.training.steps import Objective
from carevl.training.worker import run_loop

pytestmark = pytest.mark.train
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    """The shipped judge, stored in bfloat16."""
    directory, shipped = tmp_path_factory.mktemp("halved"), locate("miniworld:judge")
    hf.AutoModelForImageTextToText.from_pretrained(shipped, dtype=torch.bfloat16).save_pretrained(directory)
    hf.AutoProcessor.from_pretrained(shipped).save_pretrained(directory)
    return directory


def _curve(loop, steps):
    return [loop.step(k) for k in range(steps)]


def _losses(curve):
    return [facts["loss"] for facts in curve]


def _values(model, loop):
    """Log-probabilities of every item's judgments."""
    batch = loop.items.collate(range(len(loop.items)), loop.processor, model, "shared")
    with torch.no_grad():
        return log_probabilities(model, batch)


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_of_many_micro_batches_add_up_in_float32(begin, halved, sft_rows, quick, stage):
    training = quick(dtype="bfloat16", batch_size=8, batch_tokens=300, zero={"stage": stage})
    loop, _ = begin("sft", sft_rows, training, judge=halved)
    plain, _ = begin("sft", sft_rows, training.model_copy(update={"zero": quick(zero={"stage": 1}).zero}), judge=halved)
    items = plain.config.schedule.step(0)
    batches = plain.shard(items)
    assert len(batches) >= 5
    objective = Objective.of(training.dpo, plain.items, items)
    expected = [torch.zeros(weight.shape) for weight in plain.weights]
    for batch, packed in plain.prefetch(batches):
        share, _ = objective.compute_share(plain.judge(packed), plain.items, batch.items)
        gradients = torch.autograd.grad(share, plain.weights)
        expected = [total + gradient.float() for total, gradient in zip(expected, gradients, strict=True)]
    summed: list[torch.Tensor] = []
    update = loop._update

    def update_after_a_look():
        summed.extend(safe_get_full_grad(weight).float() for weight in loop.weights)
        return update()

    loop._update = update_after_a_look
    facts = loop.step(0)
    size = math.hypot(*(float(gradient.norm()) for gradient in expected))
    off = math.hypot(*(float((a - b).norm()) for a, b in zip(summed, expected, strict=True)))
    # Added up in bfloat16, it is 5e-3. Under ZeRO 3 one micro-batch alone is 2.3e-3 off: its linear layers are others.
    assert off < (3e-3 if stage == 3 else 1e-4) * size
    assert facts["gradient_norm"] == pytest.approx(size, rel=1e-3)


def test_positions_are_not_rounded_where_weights_are_spread_as_they_load(begin, halved, sft_rows, quick):
    loop, _ = begin("sft", sft_rows, quick(dtype="bfloat16", zero={"stage": 3}), judge=halved)
    found = {name: buffer for name, buffer in loop.judge.model.named_buffers() if buffer.is_floating_point()}
    expected = dict(load_judge(halved, "bfloat16").named_buffers())
    assert len(found) == 3
    assert all(torch.equal(buffer, expected[name]) for name, buffer in found.items())


@pytest.mark.parametrize("stage", STAGES)
def test_one_micro_batch_and_eight_give_the_same_curve(begin, halved, sft_rows, quick, tmp_path, stage):
    curves = []
    for tokens in (300, 4000):
        training = quick(dtype="bfloat16", batch_size=8, batch_tokens=tokens, epochs=3, zero={"stage": stage})
        loop, _ = begin("sft", sft_rows, training, judge=halved, out=tmp_path / str(tokens))
        curves.append(_curve(loop, 3))
    many, one = curves
    assert many[0]["gradient_norm"] == pytest.approx(one[0]["gradient_norm"], rel=5e-3)
    assert _losses(many) == pytest.approx(_losses(one), rel=0.06)


def test_it_learns_what_float32_learns(begin, halved, sft_rows, dpo_rows, quick, tmp_path):
    curves = {}
    for dtype in ("float32", "bfloat16"):
        training = quick(dtype=dtype, epochs=6)
        loop, _ = begin("sft", sft_rows, training, judge=halved, out=tmp_path / f"sft-{dtype}")
        sft = _curve(loop, 12)
        loop.export()
        adapter = loop.config.out / "adapter"
        rows = Reference(halved, training, adapter)(dpo_rows)
        options = {"judge": halved, "adapter": adapter, "out": tmp_path / f"dpo-{dtype}"}
        loop, _ = begin("dpo", rows, training, **options)
        curves[dtype] = (sft, _curve(loop, 12))
    for phase, limit in ((0, 0.05), (1, 0.1)):
        exact, rounded = (_losses(curves[dtype][phase]) for dtype in ("float32", "bfloat16"))
        assert exact[-1] < 0.9 * exact[0]
        assert rounded == pytest.approx(exact, rel=limit, abs=0.01)


@pytest.mark.parametrize("stage", STAGES)
def test_phase_2_begins_with_the_adapter_of_phase_1_unmerged(begin, halved, sft_rows, dpo_rows, quick, tmp_path, stage):
    training = quick(dtype="bfloat16", zero={"stage": stage}, epochs=2, checkpoint_steps=3)
    first, _ = begin("sft", sft_rows, training, judge=halved, out=tmp_path / "sft")
    _curve(first, 4)
    first.export()
    adapter = tmp_path / "sft" / "adapter"
    rows = Reference(halved, training, adapter)(dpo_rows)
    options = {"judge": halved, "adapter": adapter, "out": tmp_path / "dpo"}
    loop, _ = begin("dpo", rows, training, **options)
    curve = _curve(loop, 3)
    assert curve[0]["reference_gap"] == 0
    assert curve[-1]["reference_gap"] > 0
    loop.save(str(tmp_path / "checkpoint"), 3)
    expected = loop.step(3)
    resumed, _ = begin("dpo", rows, training, **options)
    assert resumed.load(str(tmp_path / "checkpoint")) == 3
    assert resumed.step(3)["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    loop.judge.eval()
    trained = torch.cat([loop.engine(packed).detach() for _, packed in loop.prefetch(loop.shard(range(8)))])
    loop.export()
    served = PeftModel.from_pretrained(load_judge(halved, "auto"), tmp_path / "dpo" / "adapter")
    assert served.peft_config["default"].r == 32
    values = [
        log_probabilities(served.get_base_model(), packed).detach() for _, packed in loop.prefetch(loop.shard(range(8)))
    ]
    assert (torch.cat(values) - trained).abs().max() < 0.25  # two steps of bfloat16 at the size of these logits


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_that_is_no_number_stops_the_training(begin, halved, sft_rows, quick, stage, dtype):
    loop, _ = begin("sft", sft_rows, quick(dtype=dtype, zero={"stage": stage}), judge=halved)
    loop.weights[3].register_hook(lambda gradient: gradient * float("nan"))
    reason = run_loop(loop)
    names = [loop.items.ids[i] for i in loop.config.schedule.step(0)]
    assert reason == f"stopped at step 1: the gradient is not a number; the step's items are {', '.join(names)}"
    assert not (loop.config.out / "judge").exists()


@pytest.fixture
def trained(begin, halved, sft_rows, dpo_rows, quick, tmp_path):
    """(loop of phase 2, the run's context) after both phases at learning rates that are usual for large judges."""
    settings = load_settings("mini", [f"judge.path={halved}", "sft.dtype=bfloat16", "dpo.dtype=bfloat16"])
    context = RunContext(settings, Run(tmp_path / "run"), {name: StageKey(name, {}) for name in ("sft", "dpo")}, print)
    training = quick(dtype="bfloat16", epochs=5, schedule="cosine", learning_rate=1e-4)
    loop, _ = begin("sft", sft_rows, training, judge=halved, out=context.table("sft").directory)
    assert run_loop(loop) is None
    judge, adapter = context.start_of("dpo")
    assert (judge.directory, adapter) == (halved, context.table("sft", "adapter").directory)
    training = training.model_copy(update={"learning_rate": 5e-6})
    rows = Reference(judge.directory, training, adapter)(dpo_rows)
    options = {"judge": judge.path, "adapter": adapter, "out": context.table("dpo").directory}
    loop, _ = begin("dpo", rows, training, **options)
    assert run_loop(loop) is None
    return loop, context


def _rms(values):
    return float(values.square().mean().sqrt())


def test_the_judge_that_is_served_is_the_judge_that_was_trained(trained, halved, record_property):
    loop, context = trained
    served = context.trained_judge("dpo")
    assert (served.path, served.adapter) == (str(halved), str(context.table("dpo", "adapter").directory))
    loop.judge.eval()
    noisy = _values(loop.judge.model, loop)
    noisy_served = _values(PeftModel.from_pretrained(load_judge(halved, "auto"), served.adapter).get_base_model(), loop)
    # Computed in float32 there is no noise: what differs are the weights.
    expected = _values(loop.judge.model.float(), loop)
    exact = _values(PeftModel.from_pretrained(load_judge(halved, "float32"), served.adapter).get_base_model(), loop)
    merged = _values(load_judge(context.merged_judge("dpo"), "float32"), loop)
    learned = _rms(expected - _values(load_judge(halved, "float32"), loop))
    figures = {
        "learned": learned,
        "served": _rms(exact - expected),
        "merged": _rms(merged - expected),
        "noise of bfloat16": _rms(noisy - expected),
        "served in bfloat16": _rms(noisy_served - noisy),
    }
    record_property("nats", figures)
    assert figures["served"] < 1e-3 * learned
    assert figures["merged"] > 100 * figures["served"]
    assert figures["merged"] > 0.1 * learned
    assert figures["served in bfloat16"] < 2 * figures["noise of bfloat16"]
