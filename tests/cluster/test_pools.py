"""Pools on a real, private Ray, with work that waits, fails and breaks on purpose."""

import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from ray import cloudpickle

from carevl.cluster.actors import _load_error
from carevl.cluster.jobs import PoolJob, Processor, Tally
from carevl.cluster.pools import run_jobs
from carevl.cluster.watch import PoolWatch, read_ahead, refuse_stall
from carevl.errors import MachineError, UserError
from carevl.models.engines import generate_with_row_errors, generator
from carevl.models.engines.base import GenerationRequest
from carevl.models.fallbacks import note_fallback
from carevl.models.row_errors import EngineLostError, Failure, retry_and_bisect
from carevl.settings.models import Judge, Pool
from carevl.store.run import RunError
from carevl.store.schemas import ERROR, row_error
from carevl.store.table import Table

SCHEMA = pa.schema([("key", pa.string()), ("value", pa.int64()), ("error", ERROR)])


@dataclass
class Waiting(Processor):
    """Takes its time over every part and fails at some keys."""

    seconds: float = 0.0
    deadly: tuple[str, ...] = ()

    def process(self, tables):
        time.sleep(self.seconds)
        rows = [{**row, "value": 2 * row["value"]} for row in tables["rows"].to_pylist()]
        for row in rows:
            if row["key"] in self.deadly:
                row["error"] = row_error("test", "engine", "it broke")
        return pa.Table.from_pylist(rows, SCHEMA)


@dataclass
class After(Waiting):
    """Begins when a table has so many parts."""

    directory: Path = Path()
    parts: int = 0

    def process(self, tables):
        end = time.monotonic() + 60
        while len(Table(self.directory).parts()) < self.parts:
            if time.monotonic() > end:
                raise TimeoutError("the other pool waits")
            time.sleep(0.05)
        return super().process(tables)


@dataclass
class Otherwise(Waiting):
    """Loads something else than the settings say."""

    def setup(self):
        note_fallback("a model: it runs elsewhere")


@dataclass
class Breaking(Processor):
    """Has an engine that is good for one part; loaded anew it is good again."""

    file: Path

    def setup(self):
        with self.file.open("a") as loads:
            loads.write("x")
        self.left = 1

    def process(self, tables):
        self.left -= 1
        return Waiting(deadly=[] if self.left >= 0 else tables["rows"]["key"].to_pylist()).process(tables)


@dataclass
class Filling(Waiting):
    """Writes to a disk that is full after so many parts of this actor."""

    after: int = 0

    def process(self, tables):
        self.after -= 1
        if self.after < 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return super().process(tables)


@dataclass
class Prepared(Waiting):
    """Begins when so many parts are preprocessed: preprocessing notes its parts, and adds 100 to every value."""

    log: Path = Path()
    parts: int = 0
    fail: tuple[str, ...] = ()

    def preprocess(self, tables):
        rows = tables["rows"].to_pylist()
        part = rows[0]["key"].split("-")[0]
        (self.log / part).touch()
        if part in self.fail:
            raise OSError("the disk is away")
        return {"rows": pa.Table.from_pylist([{**row, "value": row["value"] + 100} for row in rows], SCHEMA)}

    def process(self, tables):
        end = time.monotonic() + 60
        while len(list(self.log.iterdir())) < self.parts:
            if time.monotonic() > end:
                raise TimeoutError("nothing is made ready ahead")
            time.sleep(0.05)
        return super().process(tables)


class Unloadable(Waiting):
    """Cannot be loaded."""

    def setup(self):
        raise AssertionError("Error in memory profiling. Initial free memory 2 GiB")


LOSING = """
import os
from pathlib import Path
import torch
from carevl.models.engines.base import Engine, Generation

class Losing:
    def __init__(self, directory, times):
        self.directory, self.times = Path(directory), times
    def generate(self, requests, **arguments):
        with (self.directory / "calls").open("a") as calls:
            calls.write(f"{os.getpid()} ")
        lost = self.directory / "lost"
        if any(request.prompt == "3-1" for request in requests) and len(list(lost.iterdir())) < self.times:
            (lost / str(os.getpid())).touch()
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return [Generation(request.prompt, 1, False) for request in requests]
    def close(self):
        (self.directory / "closed" / str(os.getpid())).touch()

class LosingEngine(Engine):
    name = "losing"
    def generator(self, model):
        return Losing(model.path, model.max_tokens)
    def scorer(self, model, **arguments):
        raise NotImplementedError

ENGINE = LosingEngine()
"""


@dataclass
class Dying(Waiting):
    """Is killed at some keys that have no error yet; every key that is begun with is noted."""

    log: Path = Path()
    killing: tuple[str, ...] = ()
    at: str = "process"

    def setup(self):
        if self.at == "setup":
            os.kill(os.getpid(), signal.SIGKILL)

    def preprocess(self, tables):
        if self.at == "preprocess":
            self._die(tables["rows"].to_pylist())
        return tables

    def process(self, tables):
        if self.at == "process":
            self._die(tables["rows"].to_pylist())
        return super().process(tables)

    def _die(self, rows):
        with self.log.open("a") as log:
            log.writelines(f"{row['key']} {os.getpid()}\n" for row in rows)
        if any(row["key"] in self.killing and row["error"] is None for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class DyingAsking(Processor):
    """Is killed when it asks its engine about some keys, and has no way to pass a row by."""

    killing: tuple[str, ...]

    def process(self, tables):
        rows = [{**row, "error": None} for row in tables["rows"].to_pylist()]

        def ask(asked):
            if any(row["key"] in self.killing for row in asked):
                os.kill(os.getpid(), signal.SIGKILL)
            return [row["value"] for row in asked]

        for row, answer in zip(rows, retry_and_bisect(ask, rows), strict=True):
            if isinstance(answer, Failure):
                row["error"] = row_error("test", answer.kind, answer.message)
        return pa.Table.from_pylist(rows, SCHEMA)


@dataclass
class Asking(Processor):
    """Asks an engine that is imported by its path; it is lost so many times at the rows of part 3."""

    directory: Path
    times: int

    def setup(self):
        sys.path.insert(0, str(self.directory))
        judge = Judge(path=str(self.directory), engine="losing_engine:ENGINE", max_tokens=self.times)
        self.engine = generator(judge)

    def process(self, tables):
        rows = tables["rows"].to_pylist()
        requests = [GenerationRequest((None,), row["key"]) for row in rows]
        for row, written in zip(rows, generate_with_row_errors(self.engine, requests, max_tokens=1), strict=True):
            if isinstance(written, Failure):
                row["error"] = row_error("test", written.kind, written.message)
        return pa.Table.from_pylist(rows, SCHEMA)


@pytest.fixture(scope="module", autouse=True)
def pickled_by_value():
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)  # actors cannot import a test
    yield
    cloudpickle.unregister_pickle_by_value(here)


@pytest.fixture
def source(tmp_path):
    table = Table(tmp_path / "source")
    for part in range(6):
        rows = [{"key": f"{part}-{n}", "value": n, "error": None} for n in range(3)]
        table.write(part, pa.Table.from_pylist(rows, SCHEMA))
    return table


def job(source, name="pool", processor=Waiting, cpus=0.5, concurrency=1, **arguments):
    return PoolJob(
        name=name,
        processor=processor(**arguments),
        sources={"rows": source},
        target=Table(source.directory.parent / name),
        pool=Pool(num_cpus=cpus, concurrency=concurrency),
        key="key",
        identity=(),
    )


def silent(name, tally, n_parts):
    del name, tally, n_parts


def test_every_pool_makes_every_part_and_says_how_busy_it_was(ray, source):
    jobs = [job(source, "slow", seconds=0.4), job(source, "fast")]
    tallies = run_jobs(jobs, range(6), 0.0, silent)
    for name, tally in tallies.items():
        assert (tally.parts, tally.rows_out, tally.errors, tally.actors) == (6, 18, 0, 1)
        assert Table(source.directory.parent / name).read()["value"].to_pylist() == [0, 2, 4] * 6
    assert tallies["slow"].busy_share > 0.6
    assert tallies["slow"].facts()["busy_share"] == round(tallies["slow"].busy_share, 3)


def test_what_actors_computed_otherwise_stays_in_the_manifest(ray, source):
    jobs = [job(source, "otherwise", processor=Otherwise, concurrency=2), job(source, "as_said")]
    tallies = run_jobs(jobs, range(6), 0.0, silent)
    assert tallies["otherwise"].facts()["fallbacks"] == ["a model: it runs elsewhere"]
    assert "fallbacks" not in tallies["as_said"].facts()


def test_no_pool_waits_for_another(ray, source):
    target = source.directory.parent / "last"
    jobs = [job(source, "first", processor=After, directory=target, parts=6), job(source, "last")]
    tallies = run_jobs(jobs, range(6), 0.0, silent)
    assert {name: tally.parts for name, tally in tallies.items()} == {"first": 6, "last": 6}


def test_what_does_not_fit_at_once_starts_when_another_pool_is_done(ray, source):
    tallies = run_jobs([job(source, f"pool-{n}", cpus=1.0) for n in range(3)], range(6), 0.0, silent)
    assert [tally.parts for tally in tallies.values()] == [6, 6, 6]


def test_a_pool_of_automatic_size_uses_what_fits(ray, source):
    tallies = run_jobs([job(source, cpus=0.5, concurrency="auto", seconds=0.3)], range(6), 0.0, silent)
    assert tallies["pool"].actors == 4


def prepared(source, log, **arguments):
    pool = Pool(num_cpus=0.5, preparers=3)  # room for one
    return replace(job(source, processor=Prepared, log=log, **arguments), pool=pool)


def test_preparers_make_parts_ready_while_the_engine_works(ray, source, tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    tally = run_jobs([prepared(source, log, parts=2)], range(6), 0.0, silent)["pool"]
    assert Table(tmp_path / "pool").read()["value"].to_pylist() == [200, 202, 204] * 6
    assert tally.facts()["prepare_seconds"] > 0
    assert (tally.parts, tally.rows_in, tally.actors) == (6, 18, 1)


def test_what_cannot_be_made_ready_is_left_to_the_actor_and_what_is_there_is_passed_by(ray, source, tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    Table(tmp_path / "pool").write(4, source.read(4))
    run_jobs([prepared(source, log, parts=0, fail=("1",))], range(6), 0.0, silent)
    assert {file.name for file in log.iterdir()} == {"0", "1", "2", "3", "5"}
    values = [Table(tmp_path / "pool").read(part)["value"].to_pylist() for part in range(6)]
    assert values == [[200, 202, 204], [0, 2, 4], [200, 202, 204], [200, 202, 204], [0, 1, 2], [200, 202, 204]]


def test_retrying_rewrites_only_parts_in_which_rows_failed(ray, source):
    with pytest.raises(RunError, match=r"pool: 1 of 18 rows failed"):
        run_jobs([job(source, deadly=("2-1",))], range(6), 0.0, silent)
    target = Table(source.directory.parent / "pool")
    before = {part: target.part(part).stat().st_ino for part in range(6)}
    tallies = run_jobs([replace(job(source), retry=True)], range(6), 0.0, silent)
    after = {part: target.part(part).stat().st_ino for part in range(6)}
    assert [part for part in range(6) if before[part] != after[part]] == [2]
    assert tallies["pool"].errors == 0
    assert sorted(target.read(2)["key"].to_pylist()) == ["2-0", "2-1", "2-2"]


def test_an_engine_that_broke_is_loaded_anew(ray, source, tmp_path):
    loads = tmp_path / "loads"
    tallies = run_jobs([job(source, processor=Breaking, file=loads)], range(3), 0.0, silent)
    assert tallies["pool"].errors == 0
    assert loads.read_text() == "xxx"


def test_a_pool_that_cannot_load_stops_the_run_with_one_line_after_the_others(ray, source):
    with pytest.raises(
        RunError, match=r"^bad: cannot be loaded: AssertionError: Error in memory .*pool\.num_gpus"
    ) as bad:
        run_jobs([job(source, "bad", processor=Unloadable), job(source, "good")], range(6), 0.0, silent)
    assert len(str(bad.value).splitlines()) == 1
    assert Table(source.directory.parent / "good").parts() == [*range(6)]


@pytest.fixture
def losing(tmp_path):
    """The directory of an engine that loses itself: who called it, was lost, and was closed."""
    for name in ("lost", "closed"):
        (tmp_path / name).mkdir()
    (tmp_path / "losing_engine.py").write_text(LOSING)
    return tmp_path


@pytest.mark.fault
def test_a_lost_engine_ends_its_process_and_another_makes_the_part_again(ray, source, losing):
    tally = run_jobs([job(source, processor=Asking, directory=losing, times=1)], range(6), 0.0, silent)["pool"]
    assert (tally.parts, tally.errors, tally.restarts) == (6, 0, 1)
    assert Table(losing / "pool").read()["key"].to_pylist() == source.read()["key"].to_pylist()
    first, last = sorted(set((losing / "calls").read_text().split()), key=(losing / "calls").read_text().index)
    assert [file.name for file in (losing / "lost").iterdir()] == [first]
    assert not list((losing / "pool").glob(".deaths-*"))
    end = time.monotonic() + 60
    while not (closed := [file.name for file in (losing / "closed").iterdir()]):
        assert time.monotonic() < end, "the engine of the last process is not closed"
        time.sleep(0.1)
    assert closed == [last]


@pytest.mark.fault
def test_rows_that_lose_every_engine_carry_the_error_in_the_end(ray, source, losing):
    tally = run_jobs([job(source, processor=Asking, directory=losing, times=9)], range(6), 0.2, silent)["pool"]
    assert (tally.parts, tally.errors) == (6, 3)
    assert tally.restarts in (2, 3)  # the process that marked them ends before its next part, if there is one
    assert tally.actors == 1
    assert len(list((losing / "lost").iterdir())) == 3
    errors = {row["key"]: row["error"] for row in Table(losing / "pool").read().to_pylist() if row["error"]}
    assert sorted(errors) == ["3-0", "3-1", "3-2"]
    assert {error["kind"] for error in errors.values()} == {"engine lost"}
    assert "device-side assert" in errors["3-1"]["message"]


@pytest.fixture
def long_source(tmp_path):
    """Two parts of 16 rows."""
    table = Table(tmp_path / "long")
    for part in range(2):
        rows = [{"key": f"{part}-{n}", "value": n, "error": None} for n in range(16)]
        table.write(part, pa.Table.from_pylist(rows, SCHEMA))
    return table


@pytest.mark.fault
def test_a_row_that_kills_its_process_is_found_and_carries_the_error(ray, long_source, tmp_path):
    log = tmp_path / "log"
    tally = run_jobs([job(long_source, processor=Dying, log=log, killing=("1-5", "1-12"))], range(2), 0.1, silent)[
        "pool"
    ]
    rows = Table(tmp_path / "pool").read().to_pylist()
    assert [row["key"] for row in rows] == long_source.read()["key"].to_pylist()
    errors = {row["key"]: row["error"] for row in rows if row["error"]}
    assert {key: error["kind"] for key, error in errors.items()} == {"1-5": "actor_died", "1-12": "actor_died"}
    assert errors["1-5"]["message"].startswith("2 processes died at it")
    assert [row["value"] for row in rows if not row["error"]] == [
        2 * n for part in range(2) for n in range(16) if (part, n) not in ((1, 5), (1, 12))
    ]
    assert (tally.parts, tally.errors) == (2, 2)
    deaths = {line.split()[1] for line in log.read_text().splitlines()}
    assert 3 <= len(deaths) <= 3 + 2 * (4 + 2) + 1
    assert not [file for file in (tmp_path / "pool").iterdir() if file.name.startswith(".")]


@pytest.mark.fault
def test_pieces_that_are_made_are_not_made_again(ray, long_source, tmp_path):
    log = tmp_path / "log"
    run_jobs([job(long_source, processor=Dying, log=log, killing=("1-5",))], range(2), 0.1, silent)
    begun = [line.split()[0] for line in log.read_text().splitlines()]
    assert begun.count("1-12") == 3 + 1  # with the whole part, and once with the other half


@pytest.mark.fault
def test_a_processor_that_cannot_pass_a_row_by_asks_no_engine(ray, long_source, tmp_path):
    run_jobs([job(long_source, processor=DyingAsking, killing=("0-3",))], range(2), 0.1, silent)
    errors = {row["key"]: row["error"] for row in Table(tmp_path / "pool").read().to_pylist() if row["error"]}
    assert {key: error["kind"] for key, error in errors.items()} == {"0-3": "actor_died"}


@pytest.mark.fault
def test_a_model_that_kills_its_process_while_it_loads_stops_the_run(ray, long_source, tmp_path):
    with pytest.raises(
        RunError, match="pool: cannot be loaded: 3 processes died while they loaded it, mostly for lack"
    ):
        run_jobs([job(long_source, processor=Dying, log=tmp_path / "log", at="setup")], range(2), 0.1, silent)


@pytest.mark.fault
def test_a_preparer_that_dies_leaves_the_part_to_the_actor(ray, long_source, tmp_path):
    pool = Pool(num_cpus=0.5, preparers=1)
    dying = replace(
        job(long_source, processor=Dying, log=tmp_path / "log", killing=("1-5",), at="preprocess"), pool=pool
    )
    assert run_jobs([dying], range(2), 0.1, silent)["pool"].errors == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("No available memory for the cache blocks."), "cache blocks; it lacks memory: lower max_num_seqs"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nand failed"), "OutOfMemoryError: CUDA out of memory"),
        (ImportError("No module named 'vllm'"), "ImportError: No module named 'vllm'; install it on every node"),
        (KeyError("visual"), "KeyError: 'visual'"),
        (RuntimeError("Could not find nvcc"), "RuntimeError: Could not find nvcc"),
        (UserError("no such model"), "no such model"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(error, message):
    stated = _load_error(error)
    assert isinstance(stated, UserError)
    assert message in str(stated)


def test_a_broken_context_at_loading_is_told_from_lack_of_memory():
    assert isinstance(_load_error(torch.AcceleratorError("CUDA error: illegal memory access")), EngineLostError)
    assert isinstance(_load_error(RuntimeError("CUBLAS_STATUS_INTERNAL_ERROR when calling")), EngineLostError)
    assert isinstance(_load_error(torch.AcceleratorError("CUDA error: out of memory")), UserError)


@pytest.mark.fault
def test_a_full_disk_stops_the_run_with_one_line_and_the_next_goes_on(ray, source):
    target = Table(source.directory.parent / "pool")
    with pytest.raises(
        MachineError, match=r"pool: .*part-\d+.parquet cannot be written: no larger file may be .* MB free.* stay"
    ) as full:
        run_jobs([job(source, processor=Filling, after=2)], range(6), 0.0, silent)
    assert len(str(full.value).splitlines()) == 1
    kept = {number: target.part(number).stat().st_ino for number in target.parts()}
    assert len(kept) == 2
    assert len(list(target.directory.iterdir())) == 2
    assert run_jobs([job(source)], range(6), 0.0, silent)["pool"].parts == 6
    assert target.read()["value"].to_pylist() == [0, 2, 4] * 6
    assert kept == {number: target.part(number).stat().st_ino for number in kept}


def report(actor, seconds):
    return {
        "job": "pool",
        "actor": actor,
        "processes": actor,
        "stopped": "",
        "tally": f'{{"parts": 1, "busy_seconds": {seconds}}}',
    }


def test_a_pool_that_waits_for_its_parts_says_that_it_starves(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("carevl.cluster.watch.time.monotonic", lambda: clock[0])
    pool = PoolWatch(Pool(concurrency=2), 10)
    for _ in range(3):
        for actor in ("a", "b"):
            pool.record(report(actor, 2.0))
        clock[0] += 10.0
    assert pool.tally.trouble == "starves: its actors are busy 27% of the time"
    pool.record(report("a", 60.0))
    assert pool.tally.trouble == ""


def test_a_pool_that_says_nothing_for_long_is_told_of(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("carevl.cluster.watch.time.monotonic", lambda: clock[0])
    pool = PoolWatch(Pool(), 10)
    clock[0] = 50.0
    assert not pool.check_silence()
    clock[0] = 61.0
    assert pool.check_silence()
    assert pool.tally.trouble == "no part yet after 61 s: its actors load their model, or wait for room"
    pool.record(report("a", 40.0))
    assert pool.tally.trouble == ""
    clock[0] = 61.0 + 119
    assert not pool.check_silence()
    clock[0] = 61.0 + 121
    assert pool.check_silence()
    assert pool.tally.trouble == "stalls: no part for 121 s, none took over 40 s"


@pytest.mark.fault
def test_a_stage_without_progress_is_given_up(ray, source):
    with pytest.raises(
        MachineError, match=r"pool \(0 of 6 parts are made\): no part for 0\.\d hours, so it is given up"
    ):
        run_jobs([job(source, seconds=60.0)], range(6), 0.0, silent, stall_seconds=15.0)


def test_pools_that_wait_for_others_are_no_stall(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("carevl.cluster.watch.time.monotonic", lambda: clock[0])
    pools = {"a": PoolWatch(Pool(), 2), "b": PoolWatch(Pool(), 2)}
    clock[0] = 90.0
    pools["a"].record(report("a", 1.0))
    clock[0] = 180.0
    refuse_stall(pools, 100.0)
    clock[0] = 191.0
    with pytest.raises(MachineError, match=r"a \(1 of 2 parts are made\), b \(0 of 2"):
        refuse_stall(pools, 100.0)


def test_what_is_read_ahead_comes_in_order_and_raises():
    def read():
        yield from range(3)
        raise LookupError("broken")

    rows = read_ahead(read, lambda: None)
    assert [next(rows) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match=r"^broken$"):
        next(rows)


def test_loading_does_not_count_as_time_to_be_busy_in():
    assert Tally(busy_seconds=30.0, load_seconds=60.0, actors=1, actor_seconds=100.0).busy_share == 0.75
    assert Tally().busy_share == 0.0
