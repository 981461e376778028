"""The work of `carevl evaluate`: rows in, predictions and figures out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from carevl.benchmarks.answering import is_endpoint
from carevl.benchmarks.baselines import TRIVIAL_JUDGES, judge_trivially
from carevl.benchmarks.data import BenchmarkData
from carevl.benchmarks.listing import list_comparison, list_report
from carevl.benchmarks.predictions import Prediction, from_table, to_table
from carevl.benchmarks.result_files import read_results
from carevl.benchmarks.results import PROTOCOLS, by_protocol, compare_judges, score_baselines, score_judge
from carevl.benchmarks.run import EvalSet, JudgeRun, judge_fingerprint_inputs, predict
from carevl.cluster.connect import ray_cluster
from carevl.cluster.jobs import Tally
from carevl.errors import UserError
from carevl.models.judge_spec import JudgeSpec
from carevl.models.locate import prepare_models
from carevl.settings.data import ProtocolName
from carevl.settings.loader import fill
from carevl.settings.models import Judge
from carevl.settings.tree import Cluster
from carevl.store.run import Run
from carevl.store.stage_key import StageKey
from carevl.store.table import Table, write_atomically

PREDICTIONS, FIGURES = "predictions.parquet", "figures.json"


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


def evaluate(data: BenchmarkData, request: EvalRequest, out: Path, log: Callable[[str], None]) -> Iterable[str]:
    """Ask a judge what it has not been asked in `out` yet, write predictions and figures there, and list them.

    Raises:
        UserError: no such protocol or setting, images are missing, or too many questions failed.
    """
    protocols = _protocols(request.protocols, data)
    with Run(out).lock():
        if request.judge in TRIVIAL_JUDGES:
            eval_set = EvalSet(data.benchmark, data.rows, protocols, request.draws)
            table = to_table(judge_trivially(request.judge, data.suite, data.rows, eval_set.questions()))
        else:
            judge = fill(Judge, {"path": request.judge, "engine": request.engine}, request.overrides)
            data = data.without_missing_images(protocols, lambda _: True, allowed=request.allow_missing_images)
            eval_set = EvalSet(data.benchmark, data.rows, protocols, request.draws)
            table = _predict(eval_set, judge, data.fingerprint, Run(out), request.max_error_fraction, log)
        report = _report(data, from_table(table), request.draws)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_atomically(out / PREDICTIONS, sink.getvalue().to_pybytes())
        _write_figures(out, report)
    return list_report(data.suite, report)


def _protocols(names: Sequence[str], data: BenchmarkData) -> list[ProtocolName]:
    """Return those of these names, or the suite's own without any."""
    for name in names:
        if name not in PROTOCOLS:
            raise UserError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    if names:
        return [protocol for protocol in PROTOCOLS if protocol in names]
    return list(data.suite.default_protocols)


def _predict(
    eval_set: EvalSet,
    judge: Judge,
    rows_fingerprint: str,
    run: Run,
    max_error_fraction: float,
    log: Callable[[str], None],
) -> pa.Table:
    """Return the judge's predictions, from the table in `run` that these questions and this judge name."""
    fingerprint_inputs = {
        "benchmark": eval_set.suite.name,
        "rows": rows_fingerprint,
        "protocols": list(eval_set.protocols),
        "draws": eval_set.suite.draws if eval_set.draws is None else eval_set.draws,
        "judge": judge_fingerprint_inputs(judge),
    }
    key = StageKey("parts", fingerprint_inputs)
    table: Table = run.table(key)
    if table.manifest is None:
        logged: list[str] = []

        def on_progress(name: str, tally: Tally, parts: int) -> None:
            for sentence in tally.fallbacks[len(logged) :]:
                log(sentence)
            logged[:] = tally.fallbacks
            log(f"{name}: part {tally.parts} of {parts}, {tally.rows_out} questions, {tally.errors} errors")

        remote = is_endpoint(judge.path)
        if not remote:
            prepare_models({"judge": judge}, log)
        pixels = None if remote else JudgeSpec.of(judge).resize_pixels
        with nullcontext() if remote else ray_cluster(Cluster()):
            judge_run = JudgeRun(judge, judge.path, table, pixels)
            counts = predict([judge_run], [eval_set], on_progress, max_error_fraction=max_error_fraction)
        table.finish({"stage": key.stage, "cause": dict(key.fingerprint_inputs), **counts[judge.path]})
    return table.read()


def rescore(
    data: BenchmarkData, path: Path, draws: int | None, out: Path | None, allow_missing_images: bool
) -> Iterable[str]:
    """Compute every figure anew from stored predictions, and list them.

    Args:
        out: where figures.json is written, if anywhere.

    Raises:
        UserError: there are no predictions of this benchmark, or some rows have none.
    """
    predictions = _read(path, data)
    report = _report(_answered(data, [predictions], allow_missing_images), predictions, draws)
    if out is not None:
        _write_figures(out, report)
    return list_report(data.suite, report)


def compare(
    data: BenchmarkData, paths: tuple[Path, Path], draws: int | None, allow_missing_images: bool
) -> Iterable[str]:
    """List the differences of two judges' figures by their stored predictions.

    Raises:
        UserError: as `rescore`.
    """
    a, b = (_read(path, data) for path in paths)
    data = _answered(data, (a, b), allow_missing_images)
    return list_comparison(
        (f"{paths[0]}", f"{paths[1]}"), data.excluded, compare_judges(data.suite, data.rows, a, b, draws=draws)
    )


def _read(path: Path, data: BenchmarkData) -> list[Prediction]:
    """Read the output of `carevl evaluate` (its directory, or the Parquet file), or result files of another harness."""
    file = path / PREDICTIONS if path.is_dir() else path
    if file.suffix != ".parquet" or not file.is_file():
        return read_results(data.suite, path, data.rows, path.stem)
    stored = from_table(pq.read_table(file))
    predictions = [prediction for prediction in stored if prediction.benchmark == data.suite.name]
    if not predictions:
        names = ", ".join(sorted({prediction.benchmark for prediction in stored})) or "nothing"
        raise UserError(f"{file} holds predictions of {names}, none of {data.suite.name}")
    return predictions


def _answered(data: BenchmarkData, judges: Sequence[Sequence[Prediction]], allow_missing_images: bool) -> BenchmarkData:
    """Return the rows to be scored: all, but for those without an image that some judge has not answered."""
    answered = set.intersection(*({prediction.key for prediction in predictions} for predictions in judges))
    protocols = list(by_protocol(data.rows, judges[0]))
    return data.without_missing_images(protocols, lambda row: row.key not in answered, allowed=allow_missing_images)


def _report(data: BenchmarkData, predictions: Sequence[Prediction], draws: int | None) -> dict[str, Any]:
    """Return the content of figures.json: every judge's figures by protocol, the trivial judges' beside them."""
    by_judge: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_judge.setdefault(prediction.judge, []).append(prediction)
    return {
        "benchmark": data.suite.name,
        "rows": len(data.rows),
        "rows_fingerprint": data.fingerprint,
        "excluded": list(data.excluded),
        "judges": {name: score_judge(data.suite, data.rows, own, draws=draws) for name, own in by_judge.items()},
        "baselines": score_baselines(data.suite, data.rows, by_protocol(data.rows, predictions), draws=draws),
    }


def _write_figures(out: Path, report: dict[str, Any]) -> None:
    write_atomically(out / FIGURES, json.dumps(report, indent=2, ensure_ascii=False).encode())
