"""Trainings on workers that Ray starts: killed, several, stopped.

ZeRO on two workers is nightly: seven processes load DeepSpeed for it; test_loop.py takes ZeRO's steps with one worker.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from safetensors.torch import load_file

from carevl.errors import UserError
from carevl.models.judge_spec import JudgeSpec
from carevl.training.driver import TrainingError, prepare_training, train
from carevl.training.items import Items
from carevl.training.progress import read_log
from carevl.training.reference import Reference

pytestmark = pytest.mark.train


def _losses(curve):
    return [facts["loss"] for facts in curve]


def _alone(begin, rows, training):
    loop, _ = begin("sft", rows, training)
    return _losses([loop.step(k) for k in range(loop.config.schedule.steps)])


def _kill_a_worker(log, killed):
    """Kills the training worker once the log has six steps."""
    while len(read_log(log)) < 6:
        time.sleep(0.02)
    [worker] = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::RayTrain")]
    os.kill(worker.pid, signal.SIGKILL)
    killed.append(len(read_log(log)))


@pytest.mark.fault
def test_a_killed_worker_goes_on_with_the_same_curve(ray, begin, judge, sft_rows, write, quick, tmp_path):
    training = quick(epochs=20, checkpoint_steps=2)
    expected = _alone(begin, sft_rows, training)
    out, killed = tmp_path / "killed", []
    threading.Thread(target=_kill_a_worker, args=(out / "steps.jsonl", killed), daemon=True).start()
    done = train("sft", [write(sft_rows)], judge, out, training)
    assert 6 <= killed[0] < 40
    assert [facts["step"] for facts in done.curve] == list(range(1, 41))
    assert _losses(done.curve) == pytest.approx(expected, abs=1e-6)
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert kept == ["step-00000038", "step-00000040"]


def _drive(rows, judge, out, training):
    script = Path(__file__).with_name("train_driver.py")
    command = [sys.executable, str(script), "sft", str(rows), str(judge), str(out), training.model_dump_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.fault
def test_a_training_whose_driver_is_killed_is_taken_up_by_the_next_call(begin, judge, sft_rows, write, quick, tmp_path):
    training = quick(epochs=20, checkpoint_steps=4)
    expected = _alone(begin, sft_rows, training)
    rows, out = write(sft_rows), tmp_path / "killed"
    first = _drive(rows, judge, out, training)
    while len(read_log(out / "steps.jsonl")) < 10:
        assert first.poll() is None
        time.sleep(0.02)
    family = psutil.Process(first.pid).children(recursive=True)
    workers = [process for process in family if process.name().startswith("ray::RayTrain")]
    for worker in workers:  # left to itself, a worker that outlives its driver may be done before it notices
        worker.suspend()
    first.kill()
    first.wait()
    steps = len(read_log(out / "steps.jsonl"))
    for worker in workers:
        worker.kill()
    second = _drive(rows, judge, out, training)
    said, _ = second.communicate()
    assert second.returncode == 0
    assert 10 <= steps < 40
    assert "step 40/40" in said.splitlines()[-1]
    curve = read_log(out / "steps.jsonl")
    assert [facts["step"] for facts in curve] == list(range(1, 41))
    assert _losses(curve) == pytest.approx(expected, abs=1e-6)
    assert psutil.wait_procs(family, timeout=60)[1] == []


def test_rows_of_an_item_stand_in_one_step(judge, sft_rows, write, quick, tmp_path):
    files = [write(sft_rows.set_column(0, "item_id", pa.array([str(n // 2) for n in range(sft_rows.num_rows)])))]
    config, _, _ = prepare_training("sft", files, judge, tmp_path, quick(epochs=2))
    names = Items.open(config.data).ids
    for step in map(config.schedule.step, range(config.schedule.steps)):
        assert set(Counter(names[i] for i in step).values()) == {2}
    assert prepare_training("sft", files, judge, tmp_path, quick(epochs=2))[0] == config


def test_a_finished_training_is_only_read(ray, judge, sft_rows, write, quick, tmp_path):
    rows, out, said = write(sft_rows), tmp_path / "out", []
    training = quick(epochs=2)
    first = train("sft", [rows], judge, out, training, on_progress=said.append, resize_pixels=5000)
    assert said[-1].step == said[-1].steps == 4
    assert first.items == 8
    assert {JudgeSpec.read(directory).resize_pixels for directory in (first.judge, first.adapter)} == {5000}
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    often = training.model_copy(update={"checkpoint_steps": 1})
    again = train("sft", [rows], judge, out, often, on_progress=said.append, resize_pixels=5000)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == files
    with pytest.raises(UserError, match=r"holds another training \(settings.seed: 0 -> 1\)"):
        train("sft", [rows], judge, out, training.model_copy(update={"seed": 1}), resize_pixels=5000)
    with pytest.raises(UserError, match=r"holds another training \(resize_pixels: 5000 -> null\)"):
        train("sft", [rows], judge, out, training)


def _exported(out):
    directories = (out / "judge", out / "adapter")
    return {file.relative_to(out): file.read_bytes() for place in directories for file in sorted(place.rglob("*.*"))}


@pytest.mark.parametrize(
    "gone",
    [
        ("judge", "checkpoints", "data"),
        *(pytest.param(names, marks=pytest.mark.nightly) for names in (("judge",), ("adapter",), ("judge", "adapter"))),
    ],
)
def test_weights_that_are_gone_are_exported_again_without_training(ray, judge, sft_rows, write, quick, tmp_path, gone):
    rows, out, training = write(sft_rows), tmp_path / "out", quick(epochs=2)
    train("sft", [rows], judge, out, training)
    expected, log = _exported(out), (out / "steps.jsonl").read_bytes()
    for name in gone:
        shutil.rmtree(out / name)
    train("sft", [rows], judge, out, training)
    assert _exported(out) == expected
    assert (out / "steps.jsonl").read_bytes() == log


@pytest.mark.nightly
def test_without_checkpoints_and_adapter_a_judge_is_trained_again(ray, judge, sft_rows, write, quick, tmp_path):
    rows, out, training = write(sft_rows), tmp_path / "out", quick(epochs=2)
    done = train("sft", [rows], judge, out, training)
    for name in ("judge", "adapter", "checkpoints"):
        shutil.rmtree(out / name)
    assert _losses(train("sft", [rows], judge, out, training).curve) == _losses(done.curve)


def test_a_damaged_record_is_named_and_damaged_items_are_encoded_again(judge, sft_rows, write, quick, tmp_path):
    rows, out = write(sft_rows), tmp_path / "out"
    config, _, _ = prepare_training("sft", [rows], judge, out, quick())
    items = config.data / "items.arrow"
    data = items.read_bytes()
    for damaged in (b"", data[:-100], data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]):
        items.write_bytes(damaged)
        assert prepare_training("sft", [rows], judge, out, quick())[0] == config
        assert items.read_bytes() == data
    record = out / "training.json"
    text = record.read_text()
    record.write_text(text[:100])
    with pytest.raises(UserError, match=rf"{record} is damaged: it is not JSON .*; remove it"):
        prepare_training("sft", [rows], judge, out, quick())
    record.unlink()
    assert prepare_training("sft", [rows], judge, out, quick())[0] == config
    assert record.read_text() == text


def test_two_workers_learn_what_one_learns(ray, begin, judge, sft_rows, write, quick, tmp_path):
    training = quick(epochs=3, workers={"count": 2, "num_cpus": 0.5})
    done = train("sft", [write(sft_rows)], judge, tmp_path / "two", training)
    assert _losses(done.curve) == pytest.approx(_alone(begin, sft_rows, training), abs=1e-4)
    assert (tmp_path / "two" / "judge" / "config.json").exists()


def test_a_loss_that_is_no_number_stops_the_training(ray, judge, sft_rows, write, quick, tmp_path, break_judge):
    directory, number = break_judge(judge, sft_rows, tmp_path / "broken")
    with pytest.raises(TrainingError, match=rf"sft stopped at step [12]: the loss is not a number for item-{number};"):
        train("sft", [write(sft_rows)], directory, tmp_path / "out", quick())
    assert not (tmp_path / "out" / "judge").exists()


@pytest.mark.nightly
def test_zero_stages_give_the_same_curve_on_two_workers(begin, judge, sft_rows, write, quick, tmp_path, free_port):
    kinds = {f"zero {n}": {"stage": n} for n in range(4)} | {"offload": {"stage": 2, "offload_optimizer": True}}
    configs = {}
    for name, zero in kinds.items():
        training = quick(epochs=3, zero=zero)
        configs[name], _, _ = prepare_training("sft", [write(sft_rows)], judge, tmp_path / name, training)
    file, script = tmp_path / "configs.pickle", Path(__file__).with_name("worker_of_two.py")
    file.write_bytes(pickle.dumps(configs))
    port = free_port()
    both = [subprocess.Popen([sys.executable, str(script), str(rank), port, str(file)]) for rank in (0, 1)]
    assert [worker.wait() for worker in both] == [0, 0]
    expected = _alone(begin, sft_rows, quick(epochs=3))
    expected = [*expected[:4], *expected[3:]]  # step 4 is taken once more after going back
    for rank in (0, 1):
        curves = json.loads((tmp_path / f"curve-{rank}.json").read_text())
        assert list(curves) == list(kinds)
        for name, losses in curves.items():
            assert losses == pytest.approx(expected, abs=1e-4), name
            assert losses == pytest.approx(curves["zero 0"], abs=1e-5), name
    merged = {name: _weights(tmp_path / name / "judge") for name in kinds}
    for name, weights in merged.items():
        assert weights.keys() == merged["zero 0"].keys()
        assert max(float((weights[k] - merged["zero 0"][k]).abs().max()) for k in weights) < 1e-4, name


def test_workers_that_spread_the_judge_compute_its_reference_themselves(
    judge, dpo_rows, write, quick, tmp_path, free_port
):
    kinds = {"zero 0": Reference(judge, quick())(dpo_rows), "zero 3": dpo_rows}
    configs = {}
    for name, rows in kinds.items():
        training = quick(epochs=3, zero={"stage": int(name[-1])})
        configs[name], _, _ = prepare_training("dpo", [write(rows, name)], judge, tmp_path / name, training)
    file, script = tmp_path / "configs.pickle", Path(__file__).with_name("worker_of_two.py")
    file.write_bytes(pickle.dumps(configs))
    port = free_port()
    both = [subprocess.Popen([sys.executable, str(script), str(rank), port, str(file)]) for rank in (0, 1)]
    assert [worker.wait() for worker in both] == [0, 0]
    for rank in (0, 1):
        curves = json.loads((tmp_path / f"curve-{rank}.json").read_text())
        assert curves["zero 3"] == pytest.approx(curves["zero 0"], abs=1e-5)
    kept = json.loads((tmp_path / "zero 3" / "data" / "reference.json").read_text())
    expected = Items.open(tmp_path / "zero 0" / "data").references
    assert [kept[str(i)] for i in range(8)] == [pytest.approx(pair, abs=1e-3) for pair in expected]


@pytest.mark.nightly
def test_the_number_of_workers_may_change_between_runs(begin, judge, sft_rows, write, quick, tmp_path, free_port):
    configs = {}
    for stage in (0, 2, 3):
        training = quick(epochs=3, zero={"stage": stage})
        config, _, _ = prepare_training("sft", [write(sft_rows)], judge, tmp_path / str(stage), training)
        configs[f"zero-{stage}"] = config
    file, script = tmp_path / "configs.pickle", Path(__file__).with_name("worker_of_some.py")
    file.write_bytes(pickle.dumps(configs))
    for world, last in ((2, 2), (1, 4), (2, 6)):
        arguments = [str(world), free_port(), str(file), str(last)]
        workers = [subprocess.Popen([sys.executable, str(script), str(rank), *arguments]) for rank in range(world)]
        assert [worker.wait() for worker in workers] == [0] * world
    expected = _alone(begin, sft_rows, quick(epochs=3))
    losses = {name: json.loads((tmp_path / f"losses-{name}.json").read_text()) for name in configs}
    assert losses["zero-0"] == pytest.approx(expected, abs=1e-4)
    assert losses["zero-2"][:3] == pytest.approx(expected[:3], abs=1e-4)  # from here without the moments
    assert len(losses["zero-2"]) == 6
    assert losses["zero-2"][5] < losses["zero-2"][0]
    assert "made by 2 workers under ZeRO 3, and 1 cannot take it up" in losses["zero-3"][2]


def _weights(directory):
    return load_file(directory / "model.safetensors")
