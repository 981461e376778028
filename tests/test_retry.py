"""What failed is tried again: rows of sources after their files were repaired, and questions of benchmarks."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from carevl import config, pipeline
from carevl.runs import Cause, Run
from carevl.stages import evaluation, ingest, makers
from carevl.stages.context import Context


@pytest.fixture
def context(tmp_path):
    """A run whose source has one good row, one whose image is torn, and one without image; sources are read."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"image": name, "question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}
        for name in ("good.png", "torn.png", "none.png")
    ]
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "good.png").write_bytes(_png("red"))
    (data / "torn.png").write_bytes(_png("blue")[:60])
    settings = config.load("mini", ["benchmarks=[]", "data.parts=2"])
    source = config.Source(name="mine", path=str(data / "rows.jsonl"))
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"sources": [source]})})
    where = Run(tmp_path / "run")
    made = Context(settings, where, {"ingest": Cause("ingest", ingest.facts(settings, where))}, lambda _: None)
    counts = makers.read_sources(made, made.ingested.directory)
    made.table("ingest").finish({"cause": {}, **counts})
    return made


def _png(colour):
    data = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(data, "PNG")
    return data.getvalue()


def _version(context):
    return context.where.version(context.causes["ingest"])


def _good(context):
    return [item for item in context.ingested.items.read().to_pylist() if item["error"] is None]


def test_a_repaired_image_lets_its_row_in(context, tmp_path):
    assert len(_good(context)) == 1
    before, tried = _version(context), {}
    (tmp_path / "data" / "torn.png").write_bytes(_png("blue"))
    assert pipeline._retry_ingest(context, tried)
    assert tried == {"ingest": {"rows_out": 2, "errors": 1}}
    assert len(_good(context)) == 2
    assert _version(context) == f"{before}+1"
    manifest = context.table("ingest").manifest
    assert (manifest["rows_in"], manifest["errors"], manifest["retried"]) == (3, 1, 1)
    assert [path.name for path in (context.where.root / "ingest").iterdir()] == [context.causes["ingest"].fingerprint]


def test_rows_that_still_fail_change_nothing(context):
    before, kept = _version(context), context.ingested.items.part(0).stat().st_mtime_ns
    tried = {}
    assert not pipeline._retry_ingest(context, tried)
    assert tried == {"ingest": {"rows_out": 2, "errors": 2}}
    assert _version(context) == before
    assert context.ingested.items.part(0).stat().st_mtime_ns == kept


def test_good_tables_are_not_read_again(context, monkeypatch):
    table = context.table("ingest")
    table.finish({**table.manifest, "errors": 0})
    monkeypatch.setattr(makers, "read_sources", None)
    assert not pipeline._retry_ingest(context, {})


def test_only_judges_with_failed_questions_are_asked_again(context, monkeypatch):
    asked = []

    def run_evaluations(_, judges, *, retry):
        asked.extend((name, judge.path, retry) for name, judge in judges.items())
        return {name: {"errors": 1} for name in judges}

    monkeypatch.setattr(evaluation, "run_evaluations", run_evaluations)
    causes = {name: Cause(name, {}) for name in ("evaluate/base", "evaluate/phase1", "evaluate/phase2", "sft", "dpo")}
    made = Context(context.settings, context.where, causes, lambda _: None)
    made.table("evaluate/base").finish({"errors": 0})
    made.table("evaluate/phase1").finish({"errors": 3})
    assert pipeline._retry_predictions(made) == {"evaluate/phase1": {"rows_out": 3, "errors": 1}}
    assert asked == [("evaluate/phase1", str(made.table("sft").directory / "judge"), True)]
    assert made.table("evaluate/phase1").manifest == {"errors": 1, "retried": 1}
