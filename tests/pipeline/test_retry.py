"""Rows of sources that failed are tried again, after their files were repaired or not."""

from __future__ import annotations

import gzip
import io
import json

import pytest
from PIL import Image

from carevl.pipeline.keys import stage_keys
from carevl.pipeline.plan import plan_run
from carevl.pipeline.retry import retry_failed_rows
from carevl.pipeline.run import run_pipeline
from carevl.pipeline.status import status_lines
from carevl.settings.data import Source
from carevl.settings.loader import load_settings
from carevl.store.ingested import Ingested
from carevl.store.run import Run, RunError


@pytest.fixture
def read(tmp_path):
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
    sources = f"data.sources=[{{path: {data / 'rows.jsonl'}}}]"
    settings = load_settings("mini", ["benchmarks=[]", "data.parts=2", "max_error_fraction=1", sources])
    where = Run(tmp_path / "run")
    run_pipeline(settings, where, lambda _: None, "ingest")
    return settings, where


def _ingest(read):
    settings, where = read
    return run_pipeline(settings, where, lambda _: None, "ingest")


def _retry(read, log=lambda _: None):
    settings, where = read
    return retry_failed_rows(settings, where, log)


def _png(colour):
    data = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(data, "PNG")
    return data.getvalue()


def _state(settings, where):
    """Version, manifest and good items of what was read."""
    cause = stage_keys(settings, where)["ingest"]
    table = where.table(cause)
    items = Ingested(table.directory).items.read().to_pylist()
    return where.version(cause), table.manifest, [item for item in items if item["error"] is None]


def test_a_repaired_image_lets_its_row_in(read, tmp_path):
    before, _, good = _state(*read)
    assert len(good) == 1
    (tmp_path / "data" / "torn.png").write_bytes(_png("blue"))
    assert _retry(read) == {"ingest": {"rows_out": 2, "errors": 1}}
    version, manifest, good = _state(*read)
    assert len(good) == 2
    assert version == f"{before}+1"
    assert (manifest["rows_in"], manifest["errors"], manifest["retried"]) == (3, 1, 1)
    assert [path.name for path in (tmp_path / "run" / "ingest").iterdir()] == [before]
    assert not (tmp_path / "run" / "caption").exists()


def test_rows_that_still_fail_change_nothing(read, tmp_path):
    before = _state(*read)
    part = next((tmp_path / "run" / "ingest").rglob("items/part-00000.parquet"))
    kept = part.stat().st_mtime_ns
    assert _retry(read) == {"ingest": {"rows_out": 2, "errors": 2}}
    assert _state(*read) == before
    assert part.stat().st_mtime_ns == kept


def test_good_tables_are_not_read_again(read, tmp_path):
    (tmp_path / "data" / "rows.jsonl").write_text(
        json.dumps({"image": "good.png", "question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}) + "\n"
    )
    _ingest(read)
    said: list[str] = []
    assert _retry(read, said.append) == {}
    assert said == []


def test_sources_that_give_the_same_rows_again_count_as_what_was_read_before(read, tmp_path):
    settings, where = read
    before, _, _ = _state(*read)
    file = tmp_path / "data" / "rows.jsonl"
    file.touch()
    assert plan_run(*read)[0].action == "recompute"
    _ingest(read)
    assert len(list((tmp_path / "run" / "ingest").iterdir())) == 2
    assert _state(*read)[0] == before
    file.write_text(file.read_text().replace("A cat.", "A cow."))
    _ingest(read)
    assert _state(*read)[0] == stage_keys(settings, where)["ingest"].fingerprint


def test_too_many_rows_that_cannot_be_used_stop_the_run_with_the_first_of_each_kind(read, tmp_path):
    settings, where = read
    few = settings.model_copy(update={"max_error_fraction": 0.5})
    with pytest.raises(RunError, match=r"ingest: 2 of 3 rows cannot be used, .* = 50.0% allows") as stopped:
        run_pipeline(few, Run(tmp_path / "other"), lambda _: None, "ingest")
    told = "\n".join(status_lines(settings, where))
    for said in (str(stopped.value), told):
        assert "1 x image_missing, such as: " in said
        assert "1 x image_broken, such as: source-0 rows.jsonl#1: PNG of 60 bytes" in said


def test_a_file_that_breaks_off_stops_the_run_however_few_its_errors_are(read, tmp_path):
    settings, _ = read
    rows = (tmp_path / "data" / "rows.jsonl").read_bytes()
    cut = tmp_path / "data" / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(rows, mtime=0)[:-20])
    sources = settings.data.model_copy(update={"sources": [Source(path=str(tmp_path / "data"))]})
    for allowed in (0.99, 1.0):
        few = settings.model_copy(update={"max_error_fraction": allowed, "data": sources})
        if allowed == 1.0:
            run_pipeline(few, Run(tmp_path / "other"), lambda _: None, "ingest")
            continue
        with pytest.raises(
            RunError, match=r"cut.jsonl.gz#\d: the file cannot be read from here on.* How many rows are lost"
        ):
            run_pipeline(few, Run(tmp_path / "other"), lambda _: None, "ingest")
