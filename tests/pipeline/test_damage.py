"""Files of a run are damaged in every way, finished and unfinished: each is named, and made again alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from carevl.pipeline.keys import stage_keys
from carevl.pipeline.run import run_pipeline
from carevl.pipeline.status import verify_run
from carevl.settings.tree import Settings
from carevl.store.published import refuse_damaged
from carevl.store.run import Run
from tests.helpers.small_run import SmallRun

pytestmark = [pytest.mark.ray, pytest.mark.nightly]


def _write(file: Path, data: bytes) -> None:
    file.unlink()  # it may be a link to that of another run
    file.write_bytes(data)


def _delete(file: Path) -> None:
    file.unlink()


def _empty(file: Path) -> None:
    _write(file, b"")


def _cut(file: Path) -> None:
    _write(file, file.read_bytes()[:-9])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 3] ^= 32
    _write(file, bytes(data))


FINISHED: Mapping[str, Callable[[Path], None]] = {
    "caption/part-00001.parquet": _delete,
    "score/llama/part-00002.parquet": _cut,
    "route/part-00000.parquet": _flip,
    "demonstrate/judgments/part-00003.parquet": _flip,
    "demonstrate/targets/part-00002.parquet": _empty,
    "sft/rows/part-00000.parquet": _cut,
    "sft/judge/model.safetensors": _empty,
    "sft/steps.jsonl": _flip,
    "sample/part-00001.parquet": _delete,
    "select/part-00000.parquet": _cut,
    "select/manifest.json": _cut,
    "dpo/adapter/adapter_model.safetensors": _flip,
    "evaluate/phase2/part-00000.parquet": _flip,
}
"""File of a finished run to what becomes of it."""


def _file(settings: Settings, run: Run, name: str) -> Path:
    keys = stage_keys(settings, run)
    table = max((table for table in keys if name.startswith(f"{table}/")), key=len)
    return run.table(keys[table]).directory / name.removeprefix(f"{table}/")


def _contents(run: Run) -> dict[str, bytes]:
    """Return what a run consists of: parts, weights and logs of steps."""
    files = [file for kind in ("*.parquet", "*.safetensors", "steps.jsonl") for file in run.root.rglob(kind)]
    kept = [
        file for file in files if not {"world", "checkpoints", "data"} & {part.split("-")[0] for part in file.parts}
    ]
    return {str(file.relative_to(run.root)): file.read_bytes() for file in kept}


def test_what_is_damaged_of_a_finished_run_is_made_again_and_nothing_else(small_run: SmallRun, tmp_path: Path) -> None:
    settings, run = small_run.settings, small_run.copy(tmp_path)
    before, keys = _contents(run), stage_keys(settings, run)
    for name, damage in FINISHED.items():
        damage(_file(settings, run, name))
    _flip(run.root / "judge" / "model.safetensors")
    named = "\n".join(verify_run(settings, run))
    for name in FINISHED:
        if name != "select/part-00000.parquet":  # its manifest, which would tell, is damaged
            table = max((table for table in keys if name.startswith(f"{table}/")), key=len)
            assert f"({name.removeprefix(f'{table}/')})" in named, name
    assert f"{'judge':16s} model.safetensors is damaged" in named
    lines: list[str] = []
    done = {report.name: report.action for report in run_pipeline(settings, run, lines.append, verify=True)}
    touched = {table for name in FINISHED for table in keys if name.startswith(f"{table}/")}
    assert {name for name, action in done.items() if action == "repaired"} == touched - {"select"}
    assert done["select"] == "resumed"  # what it was is not known without its manifest
    assert {name for name, action in done.items() if action == "skipped"} == set(keys) - touched
    del before[str(_file(settings, run, "sft/steps.jsonl").relative_to(run.root))]  # nothing is trained again for it
    assert _contents(run) == before
    assert stage_keys(settings, run) == keys
    assert list(verify_run(settings, run)) == []
    refuse_damaged(run.root / "judge")
    assert not [line for line in lines if "otherwise" in line or "step " in line]


@pytest.mark.parametrize("damage", [_flip, _empty, _cut])
def test_damaged_parts_of_unfinished_stages_are_made_again(
    small_run: SmallRun, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    settings, run = small_run.settings, small_run.copy(tmp_path, "ingest", "caption", "score", "route", "demonstrate")
    before = _contents(run)
    for name in ("caption", "score/llama", "demonstrate"):
        (_file(settings, run, f"{name}/manifest.json")).unlink()
    for name in (
        "caption/part-00001.parquet",
        "score/llama/part-00000.parquet",
        "demonstrate/judgments/part-00002.parquet",
    ):
        damage(_file(settings, run, name))
    done = {report.name: report.action for report in run_pipeline(settings, run, lambda _: None, "demonstrate")}
    assert {name for name, action in done.items() if action == "resumed"} >= {"caption", "score/llama"}
    assert _contents(run) == before


def test_a_training_whose_state_is_gone_is_made_again_and_what_follows_only_if_it_differs(
    small_run: SmallRun, tmp_path: Path
) -> None:
    settings, run = small_run.settings, small_run.copy(tmp_path)
    before, keys = _contents(run), stage_keys(settings, run)
    directory = run.table(keys["dpo"]).directory
    for name in ("judge", "adapter", "checkpoints"):
        shutil.rmtree(directory / name)
    done = {report.name: report.action for report in run_pipeline(settings, run, lambda _: None)}
    assert {name for name, action in done.items() if action != "skipped"} == {"dpo"}
    after = _contents(run)
    log = str((directory / "steps.jsonl").relative_to(run.root))
    assert after.pop(log) != before.pop(log)  # which has times
    assert after == before


def test_every_damage_of_every_file_is_named(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy(tmp_path)
    tables = run.tables(stage_keys(small_run.settings, run))
    n_damages = 0
    for name, table in tables.items():
        for listed in [*(table.manifest or {})["files"], "manifest.json"]:
            file = table.directory / listed
            data = file.read_bytes()
            for damage in (_delete, _empty, _cut, _flip):
                damage(file)
                found = table.find_damage(verify=True)
                assert list(found) == ([] if (damage, listed) == (_delete, "manifest.json") else [listed]), (
                    name,
                    damage,
                )
                file.write_bytes(data)
                n_damages += 1
        assert table.find_damage(verify=True) == {}
    assert n_damages >= 300
    print(f"{n_damages} damages, each named")
