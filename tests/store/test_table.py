"""Manifests list what a table consists of, and damage is found, named and taken away."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from carevl.models.locate import locate
from carevl.pipeline.repair import finish
from carevl.store.damage import DamagedError
from carevl.store.listing import describe_problems
from carevl.store.published import find_damage, mark, published_version, refuse_damaged
from carevl.store.run import Run
from carevl.store.stage_key import StageKey
from carevl.store.table import Table

KEY = StageKey("sft", {"version": 1})


@pytest.fixture
def table(tmp_path):
    """A finished table with parts, rows below it, weights, a log, and what is only passed on."""
    table = Run(tmp_path / "run").table(KEY)
    for number in range(3):
        table.write(number, pa.table({"x": [number, 7]}))
        Table(table.directory / "rows").write(number, pa.table({"y": [number]}))
    for name in ("judge/model.safetensors", "judge/config.json", "adapter/adapter.safetensors", "training.json"):
        (table.directory / name).parent.mkdir(exist_ok=True)
        (table.directory / name).write_bytes(name.encode() * 50)
    for name in ("steps.jsonl", "curve.png", ".ends-00001", "checkpoints/step-1", "data/items.arrow"):
        (table.directory / name).parent.mkdir(exist_ok=True)
        (table.directory / name).write_bytes(b"1 2")
    table.finish({"stage": "sft", "rows_out": 6, "cause": dict(KEY.fingerprint_inputs)})
    return table


def _flip(file, place=-1):
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)


def test_a_manifest_lists_every_file_but_pictures_and_what_is_passed_on(table):
    files = table.manifest["files"]
    parts = {f"{below}part-{number:05d}.parquet" for below in ("", "rows/") for number in range(3)}
    weights = {"judge/model.safetensors", "judge/config.json", "adapter/adapter.safetensors", "training.json"}
    assert set(files) == parts | weights | {"steps.jsonl"}
    assert files["rows/part-00001.parquet"]["rows"] == 1
    assert files["judge/config.json"]["bytes"] == (table.directory / "judge/config.json").stat().st_size
    assert {len(facts["sha256"]) for facts in files.values()} == {64}
    assert table.find_damage(verify=True) == {}


@pytest.mark.parametrize(
    "name", ["part-00001.parquet", "rows/part-00002.parquet", "judge/model.safetensors", "steps.jsonl"]
)
@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut", "flipped"])
def test_damage_is_found_named_and_repaired(tmp_path, table, name, damage):
    run, file = Run(tmp_path / "run"), table.directory / name
    data = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    elif damage == "flipped":
        _flip(file, len(data) // 2)
    else:
        file.write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
    assert list(table.find_damage(verify=True)) == [name]
    if damage == "flipped":
        assert table.find_damage() == {}  # names and sizes are as they were
        damaged = table.find_damage(verify=True)
    else:
        damaged = table.find_damage()
        action, reason = run.action(KEY)
        assert action == "repair"
        assert reason.startswith(describe_problems(damaged))
    table.reopen(damaged)
    assert not file.exists()
    assert run.action(KEY)[0] == "repair"
    file.parent.mkdir(exist_ok=True)
    for other in ("config.json", "model.safetensors"):
        if name.startswith("judge/"):  # weights go together
            assert not (file.parent / other).exists()
            (file.parent / other).write_bytes(f"judge/{other}".encode() * 50)
    file.write_bytes(data)
    assert (
        finish(table, {"stage": "sft", "rows_out": 6, "cause": dict(KEY.fingerprint_inputs)}, table.list_files())
        is None
    )
    assert run.action(KEY)[0] == "skip"
    assert run.version(KEY) == KEY.fingerprint


def test_what_comes_out_otherwise_gets_another_version(tmp_path, table):
    run = Run(tmp_path / "run")
    table.part(1).unlink()
    table.reopen(table.find_damage())
    assert run.version(KEY) == KEY.fingerprint
    table.write(1, pa.table({"x": [5, 5]}))
    remark = finish(table, {"stage": "sft", "rows_out": 6}, table.list_files())
    assert remark == "part 1 came out otherwise than before; what was made from it follows"
    assert run.version(KEY) == f"{KEY.fingerprint}+1"
    assert table.is_remade_since(KEY.fingerprint)
    assert not table.is_remade_since(run.version(KEY))


def test_a_record_that_comes_out_otherwise_beside_equal_contents_changes_nothing(tmp_path, table):
    run, facts = Run(tmp_path / "run"), {"stage": "sft", "contents": "of the weights"}
    table.finish(facts)
    table.reopen(["training.json"])
    (table.directory / "training.json").write_text("{}")
    assert finish(table, facts, table.list_files()) is None
    assert run.version(KEY) == KEY.fingerprint
    assert table.find_damage(verify=True) == {}


def test_no_rows_are_read_of_a_table_that_lacks_a_part(table):
    table.part(1).unlink()
    with pytest.raises(DamagedError, match=f"{table.part(1)} is missing"):
        table.read()
    rows = Table(table.directory / "rows")
    rows.part(2).unlink()
    with pytest.raises(DamagedError, match=f"{rows.part(2)} is missing"):
        rows.parts()
    table.reopen()
    assert rows.parts() == [0, 1]


def test_a_damaged_manifest_is_named_and_made_again(tmp_path, table):
    run, file = Run(tmp_path / "run"), table.directory / "manifest.json"
    text = file.read_text()
    for damaged in (text[:40], "", "[]", text.replace('"rows_out": 6', '"rows_out": 7')):
        file.write_text(damaged)
        with pytest.raises(DamagedError, match=f"{file} is damaged"):
            _ = table.manifest
        action, reason = run.action(KEY)
        assert action == "repair"
        assert reason.startswith("manifest.json is damaged")
        assert run.version(KEY) == KEY.fingerprint
        assert run.latest("sft") is None
    table.reopen(table.find_damage())
    assert run.action(KEY) == ("resume", "the checkpoint after step 1 is there")


def test_a_table_of_an_earlier_version_has_nothing_to_compare(table):
    file = table.directory / "manifest.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({name: content[name] for name in ("stage", "cause", "rows_out")}))
    table.part(1).unlink()
    assert table.find_damage(verify=True) == {}
    assert table.parts() == [0, 2]


def test_a_damaged_part_of_an_unfinished_table_is_removed_when_it_is_met(tmp_path):
    table = Table(tmp_path)
    table.write(0, pa.table({"x": [1]}))
    table.write(1, pa.table({"x": [2]}))
    _flip(table.part(1), 30)
    assert list(table.find_damage(verify=True)) == ["part-00001.parquet"]
    assert (table.is_made(0), table.is_made(1), table.is_made(2)) == (True, False, False)
    assert table.parts() == [0]


def test_a_published_judge_shows_whether_it_is_whole(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("card")
    mark(tmp_path, "abc+1", "org/base")
    (tmp_path / "README.md").write_text("another card")
    assert published_version(tmp_path) == "abc+1"
    refuse_damaged(tmp_path)
    _flip(tmp_path / "config.json")
    assert published_version(tmp_path) == "abc+1"  # names and sizes are as they were
    assert find_damage(tmp_path, verify=True) == {"config.json": "is damaged: its checksum does not fit"}
    (tmp_path / "config.json").unlink()
    assert published_version(tmp_path) is None
    with pytest.raises(DamagedError, match=r"config\.json is missing; `carevl run` publishes the judge again"):
        refuse_damaged(tmp_path)
    (tmp_path / "judge.json").write_text("")
    assert published_version(tmp_path) is None


def test_a_published_judge_that_lacks_a_file_is_not_loaded(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    mark(tmp_path, "abc", "org/base")
    assert locate(str(tmp_path)) == str(tmp_path)
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(DamagedError, match=r"model\.safetensors is damaged: it has 0 bytes, not 2; `carevl run`"):
        locate(str(tmp_path))


def test_an_unfinished_table_says_how_many_parts_are_made_in_pieces(tmp_path):
    table = Run(tmp_path).table(KEY)
    table.write(0, pa.table({"x": [1]}))
    for name in (".split-1-0a", ".split-1-0b", ".split-2-0c"):
        (table.directory / name).mkdir()
    action = ("resume", "1 parts are there; 2 are made in pieces, since processes died at them")
    assert Run(tmp_path).action(KEY) == action
