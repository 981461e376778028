"""Every command with each path that it takes missing, a directory, binary, unreadable, or empty: one line, no fault."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from carevl.cli.app import app, run_here
from tests.helpers.finished_run import FINISHED

KINDS = ("missing", "directory", "binary", "unreadable", "empty")
EVALUATE = "evaluate --judge random --benchmark vl-rewardbench"

# Of each command: its words, where {} is the hostile path, and the suffix that the path has.
CASES = [
    ("run {} --until ingest", ".yaml"),
    ("run mini --run-dir {} --until nowhere", ""),
    ("plan {}", ".yaml"),
    ("plan mini --run-dir {} --set judge.path=/nowhere", ""),
    ("plan mini --set data.sources.0.path={} --set judge.path=/nowhere", ".parquet"),
    ("plan mini --set data.sources.0.captions={} --set judge.path=/nowhere", ".json"),
    ("plan mini --set benchmarks.0.path={} --set judge.path=/nowhere", ".parquet"),
    *((f"plan mini --set {model}.path={{}} --run-dir {{run}}", "") for model in ("judge", "captioner", "experts.0")),
    ("settings {}", ".yaml"),
    ("results {}", ""),
    ("status {}", ""),
    ("retry {}", ""),
    ("clean {}", ""),
    ("audit {} --rewrites 0", ""),
    ("audit {finished} --judge {}", ""),
    ("check {}", ""),
    ("check {}", ".yaml"),
    ("train {} --rows {finished} --out {run}", ""),
    ("train miniworld:judge --rows {} --out {run}", ""),
    ("train miniworld:judge --rows {finished} --out {run} --settings {}", ".yaml"),
    ("compare {}", ".yaml"),
    *((f"{EVALUATE} --data {{}} --out {{run}}", suffix) for suffix in (".parquet", ".jsonl", ".json", ".csv", ".tsv")),
    (f"{EVALUATE} --data {{}} --out {{run}}", ""),
    (f"{EVALUATE} --data {{rows}} --images {{}} --out {{run}}", ""),
    (f"{EVALUATE} --data {{rows}} --out {{}}", ""),
    ("evaluate --judge {} --engine transformers --benchmark vl-rewardbench --data {rows} --out {run}", ""),
    ("evaluate --from {} --benchmark vl-rewardbench --data {rows}", ""),
    ("evaluate --from {} --benchmark vl-rewardbench --data {rows}", ".parquet"),
    ("evaluate --from {} --benchmark vl-rewardbench --data {rows}", ".json"),
    ("evaluate --compare {} {} --benchmark vl-rewardbench --data {rows}", ".parquet"),
    *(("sources {}", suffix) for suffix in ("", ".parquet", ".jsonl", ".json", ".tar", ".arrow", ".csv")),
    ("sources {}", ".yaml"),
    ("sources {rows} --image-root {}", ""),
    ("export {} --out {run}", ""),
    ("export {finished} --out {}", ""),
    ("judge {} --image {image} --question q --response a --response b", ""),
    ("judge miniworld:judge --image {} --question q --response a --response b", ".png"),
    ("miniworld draw --items 20 --calibration-images 5 --out {}", ""),
    ("miniworld train --only nothing --work {}", ""),
    ("miniworld quality --weights {}", ""),
]


def hostile(kind: str, directory: Path, suffix: str) -> Path:
    path = directory / f"{kind}{suffix}"
    if kind == "directory":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(bytes(range(256)) * 4)
    elif kind == "unreadable":
        path.symlink_to(path)  # nobody can open it, root neither
    elif kind == "empty":
        path.touch()
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is whole on the command lines: a benchmark's rows, an image, a finished run."""
    root = tmp_path_factory.mktemp("whole")
    run_main(["miniworld", "draw", "--items", "20", "--calibration-images", "5", "--out", str(root / "world")])
    Image.new("RGB", (32, 32)).save(root / "image.png")
    rows = root / "world" / "dev" / "vl_rewardbench.parquet"
    shutil.copytree(FINISHED, root / "finished")
    return {"rows": rows, "image": root / "image.png", "finished": root / "finished"}


def run_main(words: list[str]) -> int:
    """Run the command line in this process; return the exit status."""
    before, sys.argv = sys.argv, ["carevl", *words]
    try:
        run_here()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.mark.parametrize(("words", "suffix"), CASES)
def test_a_hostile_path_ends_in_one_line(words, suffix, places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        directory = tmp_path / kind
        directory.mkdir()
        path = hostile(kind, directory, suffix)
        given = [word.replace("{}", str(path)).format(run=directory / "run", **places) for word in words.split()]
        status = run_main(given)
        printed = capsys.readouterr().err
        assert status in (0, 2), (kind, printed)
        assert "Traceback" not in printed, kind
        if status == 2:
            assert printed.splitlines()[-1].strip(), kind
            assert "a fault of the program" not in printed, kind


def test_every_command_is_tried() -> None:
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert commands == {words.split()[0] for words, _ in CASES} - {"miniworld"}
