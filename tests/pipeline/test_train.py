"""Any judge is trained on the targets and pairs of a finished run, whatever has become of that run's weights."""

from __future__ import annotations

import fcntl
import json
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from carevl import RewardModel
from carevl.cli.app import run_here
from carevl.data.drawn import DataRoot
from carevl.errors import SettingsError
from carevl.models.locate import locate
from carevl.pipeline.keys import derive_keys
from carevl.pipeline.train import (
    PHASES,
    TrainingDirectory,
    find_rows,
    next_steps,
    train_judge,
    training_settings,
)
from carevl.store.run import Run, RunError
from tests.helpers.finished_run import FINISHED, QUICK, copy_first_part

BASE = "miniworld:judge"


@pytest.fixture
def rows(tmp_path: Path) -> Run:
    return copy_first_part(tmp_path / "rows")


def _settings(judge, rows, *overrides, source=None):
    return training_settings(str(judge), rows.root, source, [*QUICK, *overrides])[0]


def _drop_rows(table):
    for file in table.glob("part-*"):
        pq.write_table(pq.read_table(file).slice(0, 0), file)


def _gone(pattern):
    return lambda root: next(root.glob(pattern)).unlink()


def _emptied(pattern):
    return lambda root: _drop_rows(next(root.glob(pattern)))


LACKING = {
    "unfinished targets": (
        _gone("demonstrate/*/manifest.json"),
        "has no targets to train phase 1 on: its stage demonstrate is not finished; `carevl run` it first",
    ),
    "no target": (
        _emptied("demonstrate/*/targets"),
        "has no targets to train phase 1 on: its stage demonstrate left none",
    ),
    "unfinished pairs": (
        _gone("select/*/manifest.json"),
        "has no pairs to train phase 2 on: its stage select is not finished; `carevl run` it first; --until sft trains "
        "phase 1 alone",
    ),
    "no pair": (
        _emptied("select/*"),
        "has no pairs to train phase 2 on: its stage select left none; --until sft trains phase 1 alone",
    ),
}


def test_the_base_of_a_run_has_the_fingerprints_that_it_has_there():
    settings, rows = training_settings(BASE, FINISHED, None, [])
    directory = TrainingDirectory(Path("nowhere"), rows)
    keys = derive_keys(settings, directory, DataRoot.of(settings, rows), PHASES, find_rows(rows))
    for phase in ("sft", "dpo"):
        assert [keys[phase].fingerprint] == [path.name for path in (FINISHED / phase).iterdir()]


def test_settings_are_those_of_the_run_with_another_judge():
    own, _ = training_settings(BASE, FINISHED, None, [])
    other, _ = training_settings("org/judge", FINISHED, None, ["judge.revision=abc", "dpo.learning_rate=0.5"])
    assert (other.judge.path, other.judge.revision, other.dpo.learning_rate) == ("org/judge", "abc", 0.5)
    assert (other.sft, other.data, other.judge.max_model_len) == (own.sft, own.data, own.judge.max_model_len)


def test_another_preset_gives_what_a_training_has_of_its_own():
    own, _ = training_settings(BASE, FINISHED, None, [])
    other, _ = training_settings(BASE, FINISHED, "single-gpu", ["sft.epochs=3"])
    assert other.sft.workers.num_gpus == other.dpo.workers.num_gpus == 1
    assert (other.sft.epochs, other.judge.path, other.judge.revision) == (3, BASE, None)
    assert (other.data, other.seed, other.benchmarks) == (own.data, own.seed, own.benchmarks)


@pytest.mark.parametrize(("change", "sentence"), LACKING.values(), ids=LACKING)
def test_a_run_without_rows_is_refused_and_nothing_is_made(change, sentence, rows, tmp_path, monkeypatch, capsys):
    change(rows.root)
    monkeypatch.setattr(
        sys, "argv", ["carevl", "train", BASE, "--rows", str(rows.root), "--out", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as ended:
        run_here()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"carevl: {rows.root} {sentence}\n"
    assert not (tmp_path / "out").exists()


def test_phase_1_alone_needs_no_pairs(rows):
    _gone("select/*/manifest.json")(rows.root)
    assert set(find_rows(rows, PHASES[:1])) == {"ingest", "demonstrate"}


def test_pairs_about_other_items_than_the_targets_are_refused(rows):
    file = next(rows.root.glob("sample/*/manifest.json"))
    manifest = json.loads(file.read_text())
    [own] = (rows.root / "ingest").iterdir()
    shutil.copytree(own, own.with_name("f" * 16))
    other = json.loads((own / "manifest.json").read_text()) | {"fingerprint": "f" * 16}
    (own.with_name("f" * 16) / "manifest.json").write_text(json.dumps(other))
    manifest["cause"]["inputs"]["ingest"] = "f" * 16
    file.write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="its pairs are about items of another reading of the sources than its targets"):
        find_rows(rows)


def test_the_directory_of_a_run_is_not_overwritten(rows):
    with pytest.raises(RunError, match="is the directory of a run, whose judge would be replaced; choose"):
        train_judge(_settings(BASE, rows), rows, rows, lambda _: None)


def test_a_directory_is_held_by_one_training(rows, tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 1 on another machine")
        lock.flush()
        refused = pytest.raises(RunError, match="is in use by process 1 on another machine; wait for it, or choose")
        with refused:
            train_judge(_settings(BASE, rows), rows, Run(tmp_path / "out"), lambda _: None)


def test_what_cannot_be_a_judge_is_refused_and_nothing_is_made(rows, tmp_path):
    shutil.copytree(locate(BASE), tmp_path / "judge")
    (tmp_path / "judge" / "adapter_config.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"^judge\.path: .* carries an adapter"):
        train_judge(_settings(tmp_path / "judge", rows), rows, Run(tmp_path / "out"), lambda _: None)
    assert not (tmp_path / "out").exists()


def test_next_steps_are_commands_on_the_benchmarks_of_the_run(tmp_path):
    settings, rows = training_settings(BASE, FINISHED, None, [])
    ask, *evaluate = map(shlex.split, next_steps(settings, rows, Run(tmp_path)))
    assert ask[:3] == ["carevl", "judge", str(tmp_path / "judge")]
    assert [words[words.index("--benchmark") + 1] for words in evaluate] == ["vl-rewardbench", "mllm-judge"]
    assert all(words[words.index("--data") + 1].startswith(str(FINISHED / "world-")) for words in evaluate)


def _check_published(judge: Path, base: str) -> None:
    assert {"config.json", "README.md", "judge.json", "adapter"} <= {path.name for path in judge.iterdir()}
    card = (judge / "README.md").read_text()
    assert f"Trained by CAREVL from `{base}`" in card
    assert "off-policy" in card


@pytest.mark.usefixtures("ray")
def test_a_judge_is_trained_in_both_phases_and_taken_up_where_it_was(rows, tmp_path):
    settings, out = _settings(BASE, rows), Run(tmp_path / "out")
    [first] = train_judge(settings, rows, out, lambda _: None, "sft")
    assert (first.name, first.action) == ("sft", "ran")
    assert "phase 2" not in (out.root / "judge" / "README.md").read_text()
    done = train_judge(settings, rows, out, lambda _: None)
    assert [(phase.name, phase.action) for phase in done] == [("sft", "skipped"), ("dpo", "ran")]
    _check_published(out.root / "judge", BASE)
    assert len(list(out.root.glob("*/*/curve.png"))) == 2
    weights = (out.root / "judge" / "model.safetensors").read_bytes()
    assert weights != (Path(locate(BASE)) / "model.safetensors").read_bytes()
    done = train_judge(settings, rows, out, lambda _: None)
    assert [phase.action for phase in done] == ["skipped", "skipped"]
    assert (out.root / "judge" / "model.safetensors").read_bytes() == weights
    image = pq.read_table(next(rows.root.glob("ingest/*/images/part-00000.parquet")))["bytes"][0].as_py()
    judgment = RewardModel(out.root / "judge").judge(image, "How many circles are there?", ("Two.", "Three."))
    assert judgment.winner in (0, 1)
