"""A run that begins with questions without responses: models answer, and nothing is asked twice."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from carevl.errors import UserError
from carevl.export.examples import parts
from carevl.miniworld.items import draw_items
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.run import run_pipeline
from carevl.settings.loader import load_settings
from carevl.store.ingested import Ingested
from carevl.store.run import Run
from carevl.store.schemas import ALIKE
from tests.helpers.small_run import SMALL

N = 24


@pytest.fixture
def source(tmp_path):
    """A file of questions about drawn pictures."""
    file = tmp_path / "data" / "questions.jsonl"
    file.parent.mkdir()
    _write(file, N)
    return file


def _write(file, n):
    rows = []
    for number, (image, [item, *_]) in enumerate(itertools.islice(draw_items("test", "questions"), n)):
        image.save(file.parent / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": item.question.text, "answer": item.question.answer})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _settings(source, *changes, labelled=False):
    sources = [{"path": str(source)}]
    if labelled:
        sources.append({"path": "miniworld:calibration/rlaif_v.parquet", "labels": True, "split": "calibration"})
    overrides = [f"data.sources={json.dumps(sources)}", "respond.models.0.pool.concurrency=1", *changes]
    return load_settings("mini-questions", [*SMALL, *overrides])


def _run(settings, run, until="gather"):
    lines: list[str] = []
    run_pipeline(settings, run, lines.append, until)
    keys = stage_keys(settings, run)
    return lines, {name: run.table(keys[name]) for name in ("ingest", "respond/base", "gather")}


def _counts(table) -> dict[str, Any]:
    return {name: table.manifest[name] for name in ("rows_out", "rows_taken", "errors")}


def test_questions_get_responses_and_nothing_is_asked_twice(ray, source, tmp_path):
    run = Run(tmp_path / "run")
    few = ["respond.models.0.samples=3", "respond.negatives.share=0"]
    _write(source, N - 1)
    _, tables = _run(_settings(source, *few), run)
    assert _counts(tables["respond/base"]) == {"rows_out": 3 * (N - 1), "rows_taken": 0, "errors": 0}
    ingested = Ingested.of(tables)
    items = ingested.items.read().to_pylist()
    assert len(items) == N - 1 == tables["gather"].manifest["questions"]
    compared = [item for item in items if item["error"] is None]
    assert {item["error"]["kind"] for item in items if item["error"]} <= {ALIKE}
    assert len(compared) >= 3
    wrote = ingested.writers.read().to_pylist()
    assert {row["item_id"] for row in wrote} == {item["item_id"] for item in compared}
    assert all(len(item["responses"]) >= 2 for item in compared)
    for item in compared:
        draws = [row["sample"] for row in wrote if row["item_id"] == item["item_id"]]
        assert len(draws) <= 3 == len({*draws, 0, 1, 2})

    _write(source, N)
    lines, tables = _run(_settings(source, *few), run)
    assert _counts(tables["respond/base"]) == {"rows_out": 3 * N, "rows_taken": 3 * (N - 1), "errors": 0}
    assert any(f"{3 * (N - 1)} of them from earlier tables" in line for line in lines)

    _, tables = _run(_settings(source, "respond.models.0.samples=4", "respond.negatives.share=0"), run)
    assert _counts(tables["respond/base"]) == {"rows_out": 4 * N, "rows_taken": 3 * N, "errors": 0}
    unseen = ["respond.negatives.share=1", 'respond.negatives.kinds=["other", "blurred", "blank"]']
    _, tables = _run(_settings(source, "respond.models.0.samples=4", *unseen), run)
    assert _counts(tables["respond/base"]) == {"rows_out": 8 * N, "rows_taken": 4 * N, "errors": 0}

    undisturbed = Run(tmp_path / "other")
    _, others = _run(_settings(source, "respond.models.0.samples=4", *unseen), undisturbed)
    for name in ("respond/base", "gather"):
        assert tables[name].read().equals(others[name].read())
    kinds = {row["kind"] for row in Ingested.of(tables).writers.read().to_pylist()}
    assert {"answer", "blurred"} <= kinds


def contradict(question, images, responses):
    """A way of a user's own to make rejected responses."""
    assert [image.mode for image in images] == ["RGB"]
    return [f"{responses[0]} Or the other way round, asked {question!r}."]


def number(question, images, responses):
    """Another that is none."""
    return len(responses)


def test_a_way_of_ones_own_gives_every_question_something_to_compare(ray, source, tmp_path):
    run = Run(tmp_path / "run")
    few = ["respond.models.0.samples=2", "respond.negatives.share=0"]
    _, tables = _run(_settings(source, *few, f"respond.rejected={__name__}:contradict"), run)
    ingested = Ingested.of(tables)
    assert ingested.items.errors().total() == 0
    own = [row for row in ingested.writers.read().to_pylist() if row["kind"] == "own"]
    assert len(own) == N
    assert {row["model"] for row in own} == {None}
    with pytest.raises(UserError, match=r"respond.rejected: .*:number has to return a list of texts"):
        _run(_settings(source, *few, f"respond.rejected={__name__}:number"), run)


@pytest.mark.nightly
def test_a_run_of_questions_alone_ends_with_a_judge_and_exports_say_who_wrote_what(ray, source, tmp_path):
    run = Run(tmp_path / "run")
    settings = _settings(source, "data.parts=2", labelled=True)
    run_pipeline(settings, run, lambda _: None)
    assert (run.root / "judge" / "model.safetensors").exists()
    examples = [example for part in parts(run, "pairs") for example in part.examples]
    of_questions = [example for example in examples if example.split == "train"]
    assert all(example.written_by is None for example in examples if example.split != "train")
    for example in of_questions:
        assert example.written_by is not None
        assert set(example.written_by) == {"chosen", "rejected"}
        assert {name.partition(" ")[0] for names in example.written_by.values() for name in names} <= {"base"}
    judged = [example for part in parts(run, "judgments") for example in part.examples]
    assert judged
    assert all(example.written_by["responses"] for example in judged if example.written_by)
