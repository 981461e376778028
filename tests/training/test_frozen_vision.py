"""A frozen vision tower: never differentiated, and asked once for every image of a phase."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from carevl.models.families.base import Family


@contextmanager
def _backward_calls(loop):
    """Counts the blocks of the vision tower that gradients pass."""
    calls: list[int] = []
    hooks = [
        block.register_full_backward_hook(lambda module, gradients, outputs: calls.append(1))
        for block in loop.judge.model.model.visual.blocks
    ]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("packing", ["shared", "plain"])
def test_no_gradient_passes_it(begin, sft_rows, quick, monkeypatch, packing):
    loop, _ = begin("sft", sft_rows, quick(gradient_checkpointing=True, packing=packing, batch_tokens=2400))
    with _backward_calls(loop) as calls:
        loop.step(0)
    assert calls == []
    # As transformers and PEFT leave a model that checkpoints: the inputs of every embedding require gradients.
    loop.judge.model.enable_input_require_grads()
    monkeypatch.setattr("carevl.models.tree_attention.trains_vision", lambda *_: True)
    with _backward_calls(loop) as calls:
        loop.step(1)
    assert calls


def test_it_sees_an_image_once_in_a_phase_of_several_epochs(begin, sft_rows, quick, monkeypatch, tmp_path):
    seen = []
    features = Family.features

    def count(family, model, images):
        seen.append(len(images["image_grid_thw"]))
        return features(family, model, images)

    monkeypatch.setattr(Family, "features", count)
    settings = quick(epochs=3, gradient_checkpointing=True)
    loop, _ = begin("sft", sft_rows, settings)
    curve = [loop.step(n) for n in range(6)]
    tried = 2  # when a judge is loaded
    assert sum(seen) == tried + 8
    with monkeypatch.context() as patch:
        patch.setattr("carevl.training.loop.compute_features", lambda *_: None)
        every_step, _ = begin("sft", sft_rows, settings, out=tmp_path / "every")
    assert [facts["loss"] for facts in curve] == pytest.approx([every_step.step(n)["loss"] for n in range(6)], rel=1e-4)
    assert sum(seen) == 2 * tried + 8 + 24
    again, _ = begin("sft", sft_rows, settings)
    assert [again.step(0)["loss"]] == pytest.approx([curve[0]["loss"]], rel=1e-5)
    assert sum(seen) == 3 * tried + 8 + 24  # what is stored is not computed again


def test_features_that_are_not_what_was_written_are_computed_again(begin, sft_rows, quick, tmp_path):
    loop, _ = begin("sft", sft_rows, quick(epochs=2))
    name = loop.items.images["image"][0].as_py()
    expected, file = loop.features.picture(name).features, tmp_path / "out" / "data" / "features" / "0-of-1.arrow"
    data = file.read_bytes()
    for damaged in (data[:-1], data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]):
        file.unlink()  # what is mapped into memory stays
        file.write_bytes(damaged)
        again, _ = begin("sft", sft_rows, quick(epochs=2))
        assert torch.equal(again.features.picture(name).features, expected)
        assert file.read_bytes() == data


def test_it_is_asked_in_every_step_where_nothing_can_be_kept(begin, sft_rows, quick, monkeypatch, tmp_path):
    assert begin("sft", sft_rows, quick())[0].features is None  # one epoch, every image once
    trained, _ = begin("sft", sft_rows, quick(epochs=2, train="all", lora=None), out=tmp_path / "trained")
    assert trained.features is None
    monkeypatch.setattr("carevl.training.features._SHARE_OF_DISK", 0.0)
    assert begin("sft", sft_rows, quick(epochs=2), out=tmp_path / "disk")[0].features is None


@pytest.mark.parametrize("stage", [1, 3])
def test_features_are_kept_in_bfloat16_under_zero(begin, sft_rows, quick, stage):
    loop, _ = begin("sft", sft_rows, quick(epochs=2, dtype="bfloat16", zero={"stage": stage}))
    assert loop.features is not None
    [name, *_] = loop.items.images["image"].to_pylist()
    kept = loop.features.picture(name).features
    assert kept.dtype == torch.bfloat16
    assert torch.isfinite(torch.tensor(loop.step(0)["loss"]))
