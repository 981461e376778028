"""No figure is printed, and nothing written, from a finished run that lacks a file."""

from __future__ import annotations

import shutil

import pytest
from typer.testing import CliRunner

from carevl.cli.app import app
from carevl.errors import UserError, exit_status
from carevl.export.export import export
from carevl.pipeline import results
from carevl.pipeline.audit import audit
from carevl.pipeline.keys import load_run, stage_keys
from carevl.pipeline.retry import retry_failed_rows
from carevl.pipeline.run import run_pipeline
from carevl.pipeline.status import status_lines, unlisted_tables
from carevl.store.run import VERSION
from tests.helpers.finished_run import FINISHED

PARTS = {
    "ingest": ("images", "items"),
    "caption": ("",),
    "score/llama": ("",),
    "route": ("",),
    "demonstrate": ("judgments", "targets"),
    "sample": ("",),
    "select": ("",),
    "evaluate/phase1": ("",),
}


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """The finished run, its tables as this version finishes them. Nobody may change its files for good."""
    root = tmp_path_factory.mktemp("listed") / "run"
    shutil.copytree(FINISHED, root)
    settings, run = load_run(root)
    run_pipeline(settings, run, lambda _: None)
    assert len(unlisted_tables(settings, run)) == len(stage_keys(settings, run))
    for key in stage_keys(settings, run).values():
        run.table(key).finish(run.table(key).manifest)
    assert unlisted_tables(settings, run) == []
    return settings, run


@pytest.mark.parametrize(("name", "below"), [(name, below) for name, places in PARTS.items() for below in places])
def test_a_missing_part_is_named_in_place_of_other_figures(listed, tmp_path, name, below):
    settings, run = listed
    keys = stage_keys(settings, run)
    file = run.table(keys[name]).directory / below / "part-00000.parquet"
    file.rename(tmp_path / file.name)
    try:
        called = f"{name}: part 0{' of ' + below if below else ''} is missing; "
        for print_figures in (
            lambda: results.recompute(settings, run, keys),
            lambda: results.compute(settings, run, keys),
            lambda: retry_failed_rows(settings, run, lambda _: None),
        ):
            with pytest.raises(UserError, match=f"{called}make it again with: carevl run {run.settings}"):
                print_figures()
        assert any("to repair: part 0" in line and line.startswith(name) for line in status_lines(settings, run))
        if name in ("ingest", "caption", "score/llama"):
            with pytest.raises(UserError, match=r"part 0.* is missing"):
                audit(run.root, 0, lambda _: None)
        if name in ("ingest", "select"):
            with pytest.raises(UserError, match=r"part-00000\.parquet is missing"):
                export(run, "dpo", "trl", tmp_path / "out")
    finally:
        (tmp_path / file.name).rename(file)
    assert results.recompute(settings, run, keys)


def test_figures_are_printed_where_they_cannot_be_stored(listed, tmp_path):
    shutil.copytree(listed[1].root, tmp_path / "run")
    file = tmp_path / "run" / "settings.yaml"
    file.write_text(file.read_text().replace(f"version {VERSION}", f"version {VERSION + 1}"))
    before = (tmp_path / "run" / "results.json").read_bytes()
    ended = CliRunner().invoke(app, ["results", str(tmp_path / "run")])
    assert str(ended.exception).startswith("these figures are not stored: ")
    assert exit_status(ended.exception) == 2
    assert "order_consistency" in ended.output
    assert (tmp_path / "run" / "results.json").read_bytes() == before
