"""Stage by stage: the architectures that the presets name, tiny and random, with the presets' own settings.

The shipped models of a whole rehearsal are Qwen2-VL, Llama, Qwen2 and Mistral; here are those of the presets.
"""

from __future__ import annotations

import io
import itertools
import math
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carevl.judging.prompts import judge_prompt, write_judgment
from carevl.miniworld.items import draw_items
from carevl.models.engines import close_engines, generator
from carevl.models.engines.base import GenerationRequest
from carevl.settings.loader import load_settings
from carevl.stages.caption import CaptionProcessor
from carevl.stages.score import ScoreProcessor
from carevl.store.schemas import CAPTIONS, IMAGES, ITEMS
from carevl.training.driver import train
from carevl.training.reference import Reference
from tests.helpers.items import NO_LOANS, about
from tests.helpers.reward_models import write_reward_model

pytestmark = [pytest.mark.train, pytest.mark.nightly]
SETTINGS = load_settings("single-gpu")
EXPERTS = ("llama", "qwen3", "mistral")
STEPS = {"batch_size": 4, "checkpoint_steps": 1, "workers": {"num_cpus": 1}}
"""Of eight rows, two steps; without the GPU that the presets reserve."""


@contextmanager
def _loaded(value):
    """An engine, or what holds one, ended afterwards: vLLM's give no memory back before, and whole runs follow."""
    yield value
    close_engines()


@pytest.fixture(scope="module")
def drawn():
    """Eight images with a pair each."""
    return [(image, pairs[0]) for image, pairs in itertools.islice(draw_items("test", "rehearsal"), 8)]


@pytest.fixture(scope="module")
def images(drawn):
    rows = []
    for number, (image, _) in enumerate(drawn):
        data = io.BytesIO()
        image.save(data, "PNG")
        rows.append({"image_id": str(number), "bytes": data.getvalue(), "error": None})
    return pa.Table.from_pylist(rows, IMAGES)


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_the_captioners_family_describes_every_image(engine, images, family_directory):
    path = family_directory("internvl", dtype="bfloat16")
    settings = SETTINGS.captioner.model_copy(
        update={"path": str(path), "revision": None, "engine": engine, "max_tokens": 12}
    )
    with _loaded(CaptionProcessor(settings).load()) as processor:
        captions = processor.process({"images": images}).to_pylist()
    assert len(captions) == len(images)
    # Random weights seldom end what they write.
    assert {(row["error"] or {"kind": "none"})["kind"] for row in captions} <= {"none", "truncated"}


@pytest.mark.parametrize(("number", "family"), enumerate(EXPERTS))
def test_an_experts_family_scores_every_response_in_vllm_and_agrees_with_transformers(number, family, drawn, tmp_path):
    path = write_reward_model(family, tmp_path)
    expert = SETTINGS.experts[number].model_copy(update={"path": str(path), "revision": None})
    assert expert.parity_tolerance is not None
    rows = [
        {"item_id": str(k), **about(str(k)), "question": pair.question.text}
        | {"responses": [response.text for response in pair.responses]}
        for k, (_, pair) in enumerate(drawn)
    ]
    captions = [
        {"image_id": str(k), "view": "default", "text": "A red square.", "tokens": 4} for k in range(len(drawn))
    ]
    tables = {
        **NO_LOANS,
        "items": pa.Table.from_pylist(rows, ITEMS),
        "captions": pa.Table.from_pylist(captions, CAPTIONS),
    }
    with _loaded(ScoreProcessor(expert).load()) as processor:
        scores = processor.process(tables).to_pylist()
    assert [row["error"] for row in scores] == [None] * 2 * len(rows)
    assert all(math.isfinite(score) for row in scores for score in row["scores"])


def _rows(drawn, images, directory: Path) -> tuple[Path, pa.Table]:
    """Targets of phase 1, and pairs of phase 2."""
    targets = []
    for k, (_, pair) in enumerate(drawn):
        prompt = judge_prompt("pairwise", pair.question.text, [response.text for response in pair.responses[:2]])
        target = write_judgment(pair.question.evidence, winner=1 + k % 2)
        targets.append({"item_id": str(k), "image": images["bytes"][k].as_py(), "prompt": prompt, "target": target})
    pq.write_table(pa.Table.from_pylist(targets), directory / "targets.parquet")
    pairs = [
        {**{name: row[name] for name in ("item_id", "image", "prompt")}, "chosen": row["target"]}
        | {"rejected": write_judgment(drawn[k][1].question.evidence, winner=2 - k % 2)}
        for k, row in enumerate(targets)
    ]
    return directory / "targets.parquet", pa.Table.from_pylist(pairs)


@pytest.mark.parametrize("preset", ["single-gpu", "multi-node", "small-gpu"])
def test_the_judges_family_is_trained_in_both_phases_and_vllm_loads_what_they_made(
    preset, ray, drawn, images, family_directory, tmp_path
):
    judge = family_directory("qwen3_vl", dtype="bfloat16")
    targets, pairs = _rows(drawn, images, tmp_path)
    chosen = load_settings(preset)
    phases = {name: getattr(chosen, name) for name in ("sft", "dpo")}
    phases = {name: type(phase).model_validate(phase.model_dump() | STEPS) for name, phase in phases.items()}
    assert all(phase.dtype == "bfloat16" and phase.gradient_checkpointing and phase.lora for phase in phases.values())
    first = train("sft", [targets], judge, tmp_path / "sft", phases["sft"])
    known = pairs if phases["dpo"].spreads_weights else Reference(first.judge, phases["dpo"])(pairs)
    pq.write_table(known, tmp_path / "pairs.parquet")
    rows, replay = [tmp_path / "pairs.parquet"], [targets]
    second = train("dpo", rows, first.judge, tmp_path / "dpo", phases["dpo"], replay=replay)
    for trained in (first, second):
        assert [math.isfinite(facts["loss"]) for facts in trained.curve] == [True, True]
        assert not trained.errors
    here = {"path": str(second.judge), "revision": None, "tensor_parallel": 1}
    settings = chosen.judge.model_copy(update=here)
    with _loaded(generator(settings)) as engine:
        [written] = engine.generate([GenerationRequest((drawn[0][0],), "Which is better?")], max_tokens=8)
    assert 0 < written.tokens <= 8
