"""Sources and their tables: damage is named and mended, an edit in secret is seen, and the place leaves no trace."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from carevl.cli.app import app
from carevl.errors import MachineError
from carevl.pipeline import results
from carevl.pipeline.keys import load_run, stage_keys
from carevl.pipeline.plan import plan_run
from carevl.pipeline.retry import retry_failed_rows
from carevl.pipeline.run import run_pipeline
from carevl.pipeline.status import status_lines, verify_run
from carevl.settings.loader import load_settings
from carevl.store.damage import DamagedError
from carevl.store.ingested import Ingested
from carevl.store.run import Run, RunError


def _read(directory: Path, draw, name: str = "run"):
    """Read a source of six rows, one of them without its image, that lies in a directory."""
    data = directory / "data" / "rows"
    data.mkdir(parents=True)
    rows = [
        {"image": f"{n}.png", "question": f"What is it {n}?", "chosen": "A cat.", "rejected": "A dog."}
        for n in range(6)
    ]
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n in range(5):
        (data / f"{n}.png").write_bytes(draw("PNG", seed=n))
    sources = f"data.sources=[{{path: {directory / 'data'}}}]"
    settings = load_settings("mini", ["benchmarks=[]", "data.parts=3", "max_error_fraction=1", sources])
    run = Run(directory / name)
    run_pipeline(settings, run, lambda _: None, "ingest")
    return settings, run


@pytest.fixture
def read(tmp_path, draw):
    return _read(tmp_path, draw)


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def _cut(file):
    file.write_bytes(file.read_bytes()[:-7])


DAMAGE = {
    "deleted": lambda file: file.unlink(),
    "emptied": lambda file: file.write_bytes(b""),
    "cut": _cut,
    "flipped": _flip,
}


def _files(run):
    return {str(file.relative_to(run.root)): file.read_bytes() for file in sorted(run.root.rglob("*.parquet"))}


@pytest.mark.parametrize("below", ["images", "items"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_parts_are_named_and_made_again(read, damage, below):
    settings, run = read
    before, manifest = _files(run), (ingest := run.table(stage_keys(settings, run)["ingest"])).manifest
    file = ingest.directory / below / "part-00001.parquet"
    DAMAGE[damage](file)
    called = f"part 1 of {below} is {'missing' if damage == 'deleted' else 'damaged'}"
    [line] = verify_run(settings, run)
    assert line.startswith(f"ingest           {called}")
    assert f"({below}/part-00001.parquet)" in line
    lines: list[str] = []
    if damage != "flipped":  # which names and sizes do not tell
        assert plan_run(settings, run)[0].action == "repair"
        assert next(status_lines(settings, run)).startswith(f"ingest           to repair: {called}")
        for refused in (lambda: results.compute(settings, run, stage_keys(settings, run)), lambda: _retry(read)):
            with pytest.raises(MachineError, match=rf"ingest: {called}.*carevl run .*--run-dir {run.root}"):
                refused()
    [report] = run_pipeline(settings, run, lines.append, "ingest", verify=damage == "flipped")
    assert report.action == "repaired"
    assert any(called in line for line in lines)
    assert _files(run) == before
    assert ingest.manifest == manifest
    assert list(verify_run(settings, run)) == []
    assert not any("otherwise" in line for line in lines)


def _retry(read):
    settings, run = read
    return retry_failed_rows(settings, run, lambda _: None)


@pytest.mark.parametrize("damage", ["emptied", "cut", "flipped"])
def test_a_damaged_manifest_is_made_again(read, damage):
    settings, run = read
    keys, before = stage_keys(settings, run), _files(run)
    DAMAGE[damage](run.table(keys["ingest"]).directory / "manifest.json")
    assert "to repair: manifest.json is damaged" in next(status_lines(settings, run))
    [line] = verify_run(settings, run)
    assert "manifest.json is damaged" in line
    assert run_pipeline(settings, run, lambda _: None, "ingest")[0].action == "repaired"
    assert _files(run) == before
    assert stage_keys(settings, run) == keys


def test_a_killed_repair_goes_on_and_keeps_the_version(read):
    settings, run = read
    manifest = (table := run.table(stage_keys(settings, run)["ingest"])).manifest
    table.finish({**manifest, "retried": 3})
    keys = stage_keys(settings, run)
    table.reopen(["images/part-00000.parquet"])
    assert stage_keys(settings, run) == keys
    assert run_pipeline(settings, run, lambda _: None, "ingest")[0].action == "repaired"
    assert stage_keys(settings, run) == keys
    assert table.manifest["retried"] == 3
    assert list(table.directory.parent.iterdir()) == [table.directory]


def test_sources_that_changed_in_secret_come_out_otherwise_and_what_follows_knows(read, tmp_path):
    settings, run = read
    keys = stage_keys(settings, run)
    file = tmp_path / "data" / "rows" / "rows.jsonl"
    time = file.stat().st_mtime_ns
    file.write_text(file.read_text().replace("A cat.", "A cow."))
    os.utime(file, ns=(time, time))
    assert run.action(keys["ingest"])[0] == "skip"
    [line] = verify_run(settings, run)
    assert line == f"ingest           {file} is not what was read, though size and time are: touch it, to read it again"
    Ingested(run.table(keys["ingest"]).directory).items.part(0).unlink()
    lines: list[str] = []
    run_pipeline(settings, run, lines.append, "ingest")
    assert any("came out otherwise than before; what was made from it follows" in line for line in lines)
    after = stage_keys(settings, run)
    assert after["ingest"] == keys["ingest"]
    assert after["caption"] != keys["caption"]
    assert list(verify_run(settings, run)) == []


def test_equal_runs_in_two_places_are_equal_byte_for_byte(draw, tmp_path):
    places = [tmp_path / "here", tmp_path / "there" / "deeper"]
    [(_, first), (_, second)] = [_read(place, draw) for place in places]
    tables = [next((run.root / "ingest").iterdir()) for run in (first, second)]
    files = [
        {file.relative_to(table): file.read_bytes() for file in sorted(table.rglob("*.parquet"))} for table in tables
    ]
    assert len(files[0]) == 9
    assert files[0] == files[1]
    locators = {source["locator"] for row in Ingested(tables[0]).items.read().to_pylist() for source in row["sources"]}
    assert locators == {f"rows/rows.jsonl#{n}" for n in range(6)}


def test_status_verify_exits_with_3_and_says_what_mends(read):
    settings, run = read
    whole = CliRunner().invoke(app, ["status", str(run.root), "--verify"])
    assert whole.exit_code == 0
    assert whole.stdout.splitlines()[-1] == "every stored file that a run reads is what was written"
    _flip(Ingested(run.table(stage_keys(settings, run)["ingest"]).directory).images.part(0))
    assert CliRunner().invoke(app, ["status", str(run.root)]).exit_code == 0
    damaged = CliRunner().invoke(app, ["status", str(run.root), "--verify"])
    assert damaged.exit_code == 3
    *_, line, advice = damaged.stdout.splitlines()
    assert line.startswith("ingest           part 0 of images is damaged: its checksum does not fit")
    assert advice == f"make it again with: carevl run {run.settings} --run-dir {run.root} --verify"


@pytest.mark.parametrize("damage", ["emptied", "cut", "garbled"])
def test_damaged_settings_and_results_end_in_a_sentence(read, damage):
    settings, run = read
    texts = {"emptied": "", "cut": "judge: {path: ", "garbled": "\x00\x01"}
    kept = run.settings.read_text()
    run.settings.write_text(texts[damage])
    with pytest.raises(RunError, match=rf"{run.settings}.*--run-dir {run.root}` writes {run.settings} anew"):
        load_run(run.root)
    with pytest.raises(DamagedError, match=rf"{run.settings} is damaged: .*remove it"):
        run_pipeline(settings, run, lambda _: None, "ingest")
    run.settings.write_text(kept.replace("seed:", "sued:", 1))
    with pytest.raises(RunError, match=rf"^{run.settings} is damaged, or was changed by hand: .*: sued: there"):
        load_run(run.root)
    run.settings.write_text(kept)
    file = run.root / "results.json"
    file.write_text(texts[damage])
    with pytest.raises(DamagedError, match=rf"{file} is damaged: .*`carevl run` writes it anew"):
        results.recompute(settings, run, stage_keys(settings, run))
    run_pipeline(settings, run, lambda _: None, "ingest")
    assert json.loads(file.read_text())["stages"][0]["name"] == "ingest"
    assert (run.root / "results.damaged").read_text() == texts[damage]
    shutil.rmtree(run.root)
