import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from carevl.periodic import call_every
from carevl.store.run import VERSION, Run, RunError
from carevl.store.stage_key import StageKey, differences
from carevl.store.table import Table, write_atomically


def _cause(**facts):
    return StageKey("caption", {"version": 1, "caption": {"prompt": "a", "tokens": 8}, **facts})


def test_the_fingerprint_depends_on_every_fact_and_on_nothing_else():
    assert (
        _cause().fingerprint == StageKey("caption", {"caption": {"tokens": 8, "prompt": "a"}, "version": 1}).fingerprint
    )
    assert _cause().fingerprint != _cause(caption={"prompt": "b", "tokens": 8}).fingerprint
    assert _cause().fingerprint != StageKey("score", _cause().fingerprint_inputs).fingerprint


def test_differences_name_each_changed_leaf():
    old, new = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "e": 4}
    assert differences(old, new) == ["a.c: 2 -> 3", "d: [1] -> null", "e: null -> 4"]
    assert differences({"a": [{"b": 1}, 2]}, {"a": [{"b": 3}, 2]}) == ["a.0.b: 1 -> 3"]
    assert differences({"a": [1, 2]}, {"a": [1]}) == ["a: [1, 2] -> [1]"]


def test_actions_follow_what_is_on_disk(tmp_path):
    run = Run(tmp_path)
    cause = _cause()
    assert run.action(cause) == ("run", "never run")
    table = run.table(cause)
    table.write(0, pa.table({"x": [1, 2]}))
    assert run.action(cause) == ("resume", "1 parts are there")
    table.write(1, pa.table({"x": [3]}))
    table.finish({"cause": dict(cause.fingerprint_inputs)})
    assert run.action(cause)[0] == "skip"
    assert run.table(cause).read()["x"].to_pylist() == [1, 2, 3]
    changed = _cause(caption={"prompt": "b", "tokens": 8})
    assert run.action(changed) == ("recompute", 'caption.prompt: "a" -> "b"')


@pytest.mark.fault
def test_a_write_that_fails_names_the_file_and_leaves_the_old_one_and_no_debris(tmp_path, largest_file):
    file = tmp_path / "f"
    write_atomically(file, b"old")
    with largest_file(100), pytest.raises(OSError, match=rf"File too large: '{file}'"):
        write_atomically(file, bytes(101))
    assert file.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["f"]


@pytest.mark.fault
def test_neither_a_part_nor_a_manifest_appears_on_a_full_disk(tmp_path, largest_file):
    run = Run(tmp_path)
    table = run.table(_cause())
    with largest_file(100), pytest.raises(OSError, match=r"part-00000.parquet"):
        table.write(0, pa.table({"x": [1, 2]}))
    with largest_file(100), pytest.raises(OSError, match=r"manifest.json"):
        table.finish({"cause": dict(_cause().fingerprint_inputs), "rows": list(range(100))})
    assert run.action(_cause()) == ("run", "never run")


def test_a_run_directory_is_held_by_one_process(tmp_path):
    hold = f"""
import sys
import threading
from pathlib import Path
from carevl.store.run import Run
with Run(Path({str(tmp_path)!r})).lock():
    print("held", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline().strip() == "held"
    with pytest.raises(RunError, match=f"in use by process {other.pid}"), Run(tmp_path).lock():
        pass
    other.kill()
    other.wait()
    with Run(tmp_path).lock():
        assert str(other.pid) not in (tmp_path / "run.lock").read_text()


def test_a_directory_whose_holder_is_just_ending_is_taken(tmp_path):
    (tmp_path / "run.lock").touch()
    with (tmp_path / "run.lock").open() as ending:
        fcntl.flock(ending, fcntl.LOCK_EX)
        letting_go = threading.Timer(0.5, fcntl.flock, (ending, fcntl.LOCK_UN))
        letting_go.start()
        with Run(tmp_path).lock():
            assert f"process {os.getpid()}" in (tmp_path / "run.lock").read_text()
        letting_go.join()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to the run directory"), Run(tmp_path / "file" / "run").lock():
        pass


@pytest.mark.parametrize("bucket", ["s3://bucket/run", "gs:/bucket/run"])
def test_a_bucket_is_no_run_directory(bucket):
    with pytest.raises(RunError, match="only sources may lie in a bucket"):
        Run.at(Path(bucket))


def test_a_table_comes_from_those_that_its_manifest_names(tmp_path):
    run = Run(tmp_path)
    ingest = StageKey("ingest", {"version": 1})
    route = StageKey("route", {"inputs": {"ingest": f"{ingest.fingerprint}+2"}})  # rows of it were tried again twice
    select = StageKey("select", {"inputs": {"route": route.fingerprint}})
    for key in (ingest, route, select):
        facts = {"stage": key.stage, "fingerprint": key.fingerprint, "cause": dict(key.fingerprint_inputs)}
        run.table(key).finish(facts)
    assert run.origin(run.latest("select"), "ingest")["fingerprint"] == ingest.fingerprint
    (run.table(route).directory / "manifest.json").unlink()
    with pytest.raises(RunError, match="is gone, but select was made from it"):
        run.origin(run.latest("select"), "ingest")


def test_ratings_of_an_earlier_version_are_read_beside_later_ones(tmp_path):
    table = Table(tmp_path / "judgments")
    table.write(0, pa.table({"rating": pa.array([4, None], pa.int32())}))
    table.write(1, pa.table({"rating": pa.array([4.5], pa.float32())}))
    assert table.read()["rating"].to_pylist() == [4.0, None, 4.5]


def test_a_directory_is_held_once_more_in_the_same_process(tmp_path):
    run = Run(tmp_path)
    with run.lock(), run.lock():
        assert f"process {os.getpid()}" in (tmp_path / "run.lock").read_text()
    assert (tmp_path / "run.lock").read_text() == ""


def test_a_holder_on_another_machine_lives_as_long_as_it_gives_a_sign(tmp_path, monkeypatch):
    monkeypatch.setattr("carevl.store.run._PATIENCE", 1.0)
    file = tmp_path / "run.lock"
    file.write_text("process 7 on elsewhere")
    with (
        call_every(0.1, lambda: os.utime(file)),
        pytest.raises(RunError, match="in use by process 7 on elsewhere"),
        Run(tmp_path).lock(),
    ):
        pass
    with Run(tmp_path).lock():
        assert "elsewhere" not in file.read_text()


def test_the_lock_file_gets_younger_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("carevl.store.run._BEAT", 0.05)
    with Run(tmp_path).lock():
        first, end = (tmp_path / "run.lock").stat().st_mtime_ns, time.monotonic() + 30
        while (tmp_path / "run.lock").stat().st_mtime_ns == first:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_directory_of_a_later_version_is_not_written(tmp_path):
    run = Run(tmp_path)
    run.remember({"seed": 7})
    assert run.refusal is None
    text = run.settings.read_text()
    run.settings.write_text(text.replace(f"version {VERSION}", f"version {VERSION + 1}"))
    with pytest.raises(RunError, match=f"written by a later carevl .*version {VERSION + 1}; this one knows {VERSION}"):
        run.lock().__enter__()
    assert not (tmp_path / "run.lock").exists()


def test_a_file_is_no_run_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file; name a directory"):
        Run.at(tmp_path / "file")


def test_settings_that_are_not_what_was_written_are_noticed(tmp_path):
    run = Run(tmp_path)
    run.remember({"seed": 3, "judge": {"path": "org/judge"}})
    assert run.find_settings_problem() is None
    data = run.settings.read_bytes()
    for end in range(len(data)):
        run.settings.write_bytes(data[:end])
        assert "is damaged" in run.find_settings_problem()
    run.settings.write_bytes(data.replace(b"3", b"4", 1))
    assert "changed by hand" in run.find_settings_problem()
    run.settings.write_text("seed: 3\n")  # as an earlier version wrote it
    assert run.find_settings_problem() is None
