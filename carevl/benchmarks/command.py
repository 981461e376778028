"""The work of `carevl evaluate`: rows in, predictions and figures out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from carevl.benchmarks.baselines import TRIVIAL_JUDGES, judge_trivially
from carevl.benchmarks.coverage import Coverage, draws_several
from carevl.benchmarks.data import BenchmarkData, list_some
from carevl.benchmarks.diagnostics import count_stored, count_verdicts
from carevl.benchmarks.listing import list_comparison, list_report
from carevl.benchmarks.predictions import Prediction, from_table, to_table
from carevl.benchmarks.result_files import read_results
from carevl.benchmarks.results import (
    PROTOCOLS,
    by_protocol,
    compare_judges,
    cover_all,
    score_baselines,
    score_covered,
)
from carevl.benchmarks.run import EvalSet, JudgeRun, judge_fingerprint_inputs, predict
from carevl.benchmarks.suite import Suite, refuse_unrated
from carevl.cluster.connect import ray_cluster
from carevl.cluster.jobs import Tally
from carevl.errors import UserError, reading
from carevl.judging.counts import VerdictCounts, describe, join, store
from carevl.models.adapter_files import check_adapter
from carevl.models.judge_spec import JudgeSpec
from carevl.models.locate import prepare_models, refuse_missing_directory
from carevl.settings.data import ProtocolName
from carevl.settings.loader import fill
from carevl.settings.models import Judge
from carevl.settings.requests import is_endpoint
from carevl.settings.tree import Cluster
from carevl.store.listing import describe_problems
from carevl.store.run import Run
from carevl.store.stage_key import StageKey
from carevl.store.table import write_atomically

PREDICTIONS, FIGURES = "predictions.parquet", "figures.json"
_FINGERPRINT = "carevl.fingerprint"
"""Of what predictions depend on, in the metadata of their file."""
_OF_ENDPOINTS = {"path", "engine", "max_tokens", "max_images", "asking", "endpoint", "pool", "pool.batch_size"}
"""Settings of a judge that hold for one behind an endpoint."""


@dataclass(frozen=True)
class EvalRequest:
    """A judge to evaluate, and how it is asked."""

    judge: str
    engine: str = "vllm"
    protocols: Sequence[str] = ()
    draws: int | None = None
    overrides: Sequence[str] = ()
    allow_missing_images: bool = False
    max_error_fraction: float = 0.05
    force_verdicts: bool = False


def evaluate(data: BenchmarkData, request: EvalRequest, out: Path, log: Callable[[str], None]) -> Iterable[str]:
    """Ask a judge what it has not been asked in `out` yet, write predictions and figures there, and list them.

    Raises:
        UserError: no such protocol, setting or model, images are missing, `out` holds other predictions, too many
            questions failed, or nothing can be scored; what was answered stays.
    """
    protocols = _protocols(request.protocols, data)
    _refuse_draws(data, protocols, request.draws)
    with Run(out).lock():
        if request.judge in TRIVIAL_JUDGES:
            eval_set = EvalSet(data.benchmark, data.rows, protocols, request.draws)
            key = _key(eval_set, data.fingerprint, request.judge)
            _refuse_other(out, key, eval_set.suite, request.judge)
            table = to_table(judge_trivially(request.judge, data.suite, data.rows, eval_set.questions()))
        else:
            judge = fill(Judge, {"path": request.judge, "engine": request.engine}, request.overrides)
            if is_endpoint(judge.path):
                _refuse_for_endpoint(judge)
            else:
                refuse_missing_directory(judge.path)
            data = data.without_missing_images(protocols, allowed=request.allow_missing_images)
            eval_set = EvalSet(data.benchmark, data.rows, protocols, request.draws)
            forced = {"force_verdicts": True} if request.force_verdicts else {}
            key = _key(eval_set, data.fingerprint, judge_fingerprint_inputs(judge) | forced)
            _refuse_other(out, key, eval_set.suite, judge.path)
            table = _predict(eval_set, judge, key, Run(out), request, log)
        report = _report(data, from_table(table), request.draws)
        _write_predictions(out, table, key)
        _write_figures(out, report)
    _refuse_unscored(report, f"; the predictions are kept in {out / PREDICTIONS}")
    return list_report(data.suite, report)


def _key(eval_set: EvalSet, rows_fingerprint: str, judge: Any) -> StageKey:
    """Return what names the predictions of a judge: everything that they depend on."""
    fingerprint_inputs = {
        "benchmark": eval_set.suite.name,
        "rows": rows_fingerprint,
        "protocols": list(eval_set.protocols),
        "draws": eval_set.suite.draws if eval_set.draws is None else eval_set.draws,
        "judge": judge,
    }
    return StageKey("parts", fingerprint_inputs)


def _write_predictions(out: Path, table: pa.Table, key: StageKey) -> None:
    """Write predictions with the fingerprint of what they depend on, by which `_refuse_other` knows them."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_FINGERPRINT: key.fingerprint}), sink, compression="zstd")
    write_atomically(out / PREDICTIONS, sink.getvalue().to_pybytes())


def _refuse_other(out: Path, key: StageKey, suite: Suite, judge: str) -> None:
    """Refuse a directory whose predictions are others than those that a key names.

    Raises:
        UserError: they are; a file of an earlier version is known by its judge and benchmark.
    """
    file = out / PREDICTIONS
    if not file.is_file():
        return
    with reading(file):
        stored = (pq.read_schema(file).metadata or {}).get(_FINGERPRINT.encode())
        names = pq.read_table(file, columns=["benchmark", "judge"]).group_by(["benchmark", "judge"]).aggregate([])
    if stored is None and names.to_pylist() == [{"benchmark": suite.name, "judge": judge}]:
        return
    if stored is None or stored.decode() != key.fingerprint:
        held = ", ".join(f"{row['judge']} on {row['benchmark']}" for row in names.to_pylist()) or "nobody"
        raise UserError(
            f"{file} holds predictions of {held} that this command would replace: judge, rows, protocols or draws are "
            "others now; give another --out, or remove that file"
        )


def _refuse_for_endpoint(judge: Judge) -> None:
    """Refuse settings of a judge that do nothing where it is an endpoint.

    Raises:
        UserError: some were given.
    """
    given = {*judge.model_fields_set, *(f"pool.{name}" for name in judge.pool.model_fields_set)}
    if idle := sorted(given - _OF_ENDPOINTS):
        raise UserError(f"--set {', '.join(idle)} does not apply to an endpoint; leave it out")


def _refuse_draws(data: BenchmarkData, protocols: Sequence[ProtocolName], draws: int | None) -> None:
    """Refuse a number of draws where nothing is drawn.

    Raises:
        UserError: none of these protocols draws several judgments of a row.
    """
    if draws is not None and not any(draws_several(data.suite, data.rows, protocol) for protocol in protocols):
        raise UserError(f"--k {draws}: {data.suite.name} draws nothing under {', '.join(protocols)}; leave it out")


def _refuse_unscored(report: Mapping[str, Any], where: str = "") -> None:
    """Refuse a report without any figure.

    Args:
        where: what is added to the message.

    Raises:
        UserError: no row of any judge counts under any protocol; it quotes what was written.
    """
    scores = [score for of_judge in report["judges"].values() for score in of_judge.values()]
    if any(figure["value"] is not None for score in scores for figure in score["figures"].values()):
        return
    counts = join(VerdictCounts(**score["verdicts"]) for score in scores)
    written = f", such as {'; '.join(counts.unread)}" if counts.unread else ""
    raise UserError(f"{report['benchmark']}: nothing can be scored: {counts.line()}{written}{where}")


def _protocols(names: Sequence[str], data: BenchmarkData) -> list[ProtocolName]:
    """Return those of these names, or the suite's own without any."""
    for name in names:
        if name not in PROTOCOLS:
            raise UserError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    refuse_unrated(data.suite, names)
    if names:
        return [protocol for protocol in PROTOCOLS if protocol in names]
    return list(data.suite.default_protocols)


def _predict(
    eval_set: EvalSet,
    judge: Judge,
    key: StageKey,
    run: Run,
    request: EvalRequest,
    log: Callable[[str], None],
) -> pa.Table:
    """Return the judge's predictions, from the table in `run` that `key` names; errors of endpoints are asked again."""
    table, remote = run.table(key), is_endpoint(judge.path)
    if damage := table.find_damage():
        log(describe_problems(damage))
        table.reopen(damage)
    if table.manifest is None or (remote and table.errors()):
        logged: list[str] = []

        def on_progress(name: str, tally: Tally, parts: int) -> None:
            for sentence in tally.fallbacks[len(logged) :]:
                log(sentence)
            logged[:] = tally.fallbacks
            log(f"{name}: part {tally.parts} of {parts}, {tally.rows_out} questions, {tally.errors} errors")

        if not remote:
            prepare_models({"judge": judge}, log)
            check_adapter(judge)
        pixels = None if remote else JudgeSpec.of(judge).resize_pixels
        with nullcontext() if remote else ray_cluster(Cluster()):
            judge_run = JudgeRun(judge, judge.path, table, pixels, request.force_verdicts)
            most = request.max_error_fraction
            counts = predict([judge_run], [eval_set], on_progress, max_error_fraction=most, log=log)
        verdicts = count_stored(table)
        for line in describe(verdicts):
            log(line)
        facts = {**counts[judge.path], "verdicts": store(verdicts)}
        table.finish({"stage": key.stage, "cause": dict(key.fingerprint_inputs), **facts})
    return table.read()


def rescore(data: BenchmarkData, path: Path, draws: int | None, out: Path | None) -> Iterable[str]:
    """Compute every figure anew from stored predictions, of the rows that have some, and list them.

    Args:
        out: where figures.json is written, if anywhere.

    Raises:
        UserError: there are no predictions of these rows, nothing of them can be scored, or `out` holds others.
    """
    predictions = _read(path, data)
    _refuse_draws(data, list(by_protocol(data.rows, predictions)), draws)
    report = _report(data, predictions, draws)
    _refuse_unscored(report)
    if out is not None:
        file = out / PREDICTIONS
        if file.exists() and not (_file(path).exists() and file.samefile(_file(path))):
            raise UserError(f"{file} is of other predictions than {path}; give another --out for their figures")
        _write_figures(out, report)
    return list_report(data.suite, report)


def compare(data: BenchmarkData, paths: tuple[Path, Path], draws: int | None) -> Iterable[str]:
    """List the differences of two judges' figures by their stored predictions, on the rows that both have.

    Raises:
        UserError: there are no predictions of these rows, or the two have no row under one protocol in common.
    """
    a, b = (_read(path, data) for path in paths)
    of_a, of_b = (by_protocol(data.rows, predictions) for predictions in (a, b))
    _refuse_draws(data, [protocol for protocol in of_a if protocol in of_b] or list(of_a), draws)
    comparisons = compare_judges(data.suite, data.rows, a, b, draws=draws)
    if not comparisons:
        raise UserError(
            f"nothing to compare: {paths[0]} has {_describe(a)}, {paths[1]} has {_describe(b)}, and no row of "
            f"{data.suite.name} has predictions of both under one protocol"
        )
    return list_comparison(data.suite, (f"{paths[0]}", f"{paths[1]}"), len(data.rows), comparisons)


def _describe(predictions: Sequence[Prediction]) -> str:
    """Return the protocols of predictions, and how many rows each has."""
    keys: dict[str, set[str]] = {}
    for prediction in predictions:
        keys.setdefault(prediction.protocol, set()).add(prediction.key)
    return ", ".join(f"{len(of_protocol)} rows under {protocol}" for protocol, of_protocol in keys.items())


def _file(path: Path) -> Path:
    return path / PREDICTIONS if path.is_dir() else path


def _read(path: Path, data: BenchmarkData) -> list[Prediction]:
    """Read the output of `carevl evaluate` (its directory, or the Parquet file), or result files of another harness.

    Raises:
        UserError: there is none, or it has no prediction of these rows.
    """
    with reading(path):
        predictions = _read_file(path, data)
    keys = {row.key for row in data.rows}
    if not any(prediction.key in keys for prediction in predictions):
        answered = list_some(list(dict.fromkeys(prediction.key for prediction in predictions)))
        raise UserError(
            f"{path}: none of its answers is to one of the {len(data.rows)} rows of --data, such as "
            f"{list_some([row.key for row in data.rows])}" + (f"; they are to {answered}" if answered else "")
        )
    return predictions


def _read_file(path: Path, data: BenchmarkData) -> list[Prediction]:
    file = _file(path)
    if file.suffix != ".parquet" or not file.is_file():
        return read_results(data.suite, path, data.rows, path.stem)
    stored = from_table(pq.read_table(file))
    predictions = [prediction for prediction in stored if prediction.benchmark == data.suite.name]
    if not predictions:
        names = ", ".join(sorted({prediction.benchmark for prediction in stored})) or "nothing"
        raise UserError(f"{file} holds predictions of {names}, none of {data.suite.name}")
    return predictions


def _report(data: BenchmarkData, predictions: Sequence[Prediction], draws: int | None) -> dict[str, Any]:
    """Return the content of figures.json: every judge's figures by protocol, the trivial judges' beside them."""
    by_judge: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_judge.setdefault(prediction.judge, []).append(prediction)
    covered = {name: cover_all(data.suite, data.rows, own, draws) for name, own in by_judge.items()}
    return {
        "benchmark": data.suite.name,
        "rows": len(data.rows),
        "rows_fingerprint": data.fingerprint,
        "excluded": list(data.excluded),
        "judges": {
            name: {protocol: _score(data.suite, protocol, each) for protocol, each in of_judge.items()}
            for name, of_judge in covered.items()
        },
        "baselines": score_baselines(data.suite, data.rows, list(covered.values())),
    }


def _score(suite: Suite, protocol: ProtocolName, covered: Coverage) -> dict[str, Any]:
    """Return a judge's scores under a protocol, with the counts of its verdicts."""
    return {**score_covered(suite, protocol, covered), "verdicts": count_verdicts(covered.predictions).facts}


def _write_figures(out: Path, report: dict[str, Any]) -> None:
    write_atomically(out / FIGURES, json.dumps(report, indent=2, ensure_ascii=False).encode())
