"""What `carevl evaluate` does: rows in, predictions and figures out."""

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
from carevl.benchmarks.data import Data
from carevl.benchmarks.layouts import read_official
from carevl.benchmarks.listing import list_comparison, list_report
from carevl.benchmarks.predictions import Prediction, from_table, to_table
from carevl.benchmarks.results import PROTOCOLS, baselines, by_protocol, compared, judged
from carevl.benchmarks.run import Asked, Exam, facts, predict
from carevl.cluster.connect import ray_cluster
from carevl.cluster.jobs import Tally
from carevl.errors import UserError
from carevl.settings.data import ProtocolName
from carevl.settings.loader import fill
from carevl.settings.models import Judge
from carevl.settings.tree import Cluster
from carevl.store.run import Run
from carevl.store.stage_key import StageKey
from carevl.store.table import Table, write_atomically

PREDICTIONS, FIGURES = "predictions.parquet", "figures.json"


@dataclass(frozen=True)
class Asking:
    """Who is asked, and how."""

    judge: str
    engine: str = "vllm"
    protocols: Sequence[str] = ()
    draws: int | None = None
    overrides: Sequence[str] = ()
    allow_missing_images: bool = False
    max_error_fraction: float = 0.05


def evaluate(data: Data, asking: Asking, out: Path, say: Callable[[str], None]) -> Iterable[str]:
    """Asks a judge what it has not been asked in `out` yet, writes predictions and figures there, and lists them.

    Raises:
        UserError: no such protocol or setting, images are missing, or too many questions failed.
    """
    protocols = _protocols(asking.protocols, data)
    draws = data.suite.draws if asking.draws is None else asking.draws
    with Run(out).lock():
        if asking.judge in TRIVIAL_JUDGES:
            asked = [q for protocol in protocols for q in data.suite.questions(data.rows, protocol, draws=draws)]
            table = to_table(judge_trivially(asking.judge, data.suite, data.rows, asked))
        else:
            judge = fill(Judge, {"path": asking.judge, "engine": asking.engine}, asking.overrides)
            data = data.without_missing_images(protocols, lambda _: True, allowed=asking.allow_missing_images)
            table = _ask(data, judge, protocols, draws, asking.max_error_fraction, Run(out), say)
        found = _report(data, from_table(table), asking.draws)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_atomically(out / PREDICTIONS, sink.getvalue().to_pybytes())
        _write_figures(out, found)
    return list_report(data.suite, found)


def _protocols(names: Sequence[str], data: Data) -> list[ProtocolName]:
    """Of these names; by default strict and official scoring of one set of judgments, or a reward model's scores."""
    for name in names:
        if name not in PROTOCOLS:
            raise UserError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    if names:
        return [protocol for protocol in PROTOCOLS if protocol in names]
    return list(data.suite.default_protocols)


def _ask(
    data: Data,
    judge: Judge,
    protocols: Sequence[ProtocolName],
    draws: int,
    allowed: float,
    run: Run,
    say: Callable[[str], None],
) -> pa.Table:
    questions = {"benchmark": data.suite.name, "rows": data.fingerprint, "protocols": list(protocols)}
    cause = StageKey("parts", {**questions, "draws": draws, "judge": facts(judge)})
    table: Table = run.table(cause)
    if table.manifest is None:

        def tell(name: str, tally: Tally, parts: int) -> None:
            say(f"{name}: part {tally.parts} of {parts}, {tally.rows_out} questions, {tally.errors} errors")

        with nullcontext() if is_endpoint(judge.path) else ray_cluster(Cluster()):
            test = Exam(data.benchmark, data.rows, protocols, draws)
            counts = predict([Asked(judge, judge.path, table)], [test], tell, max_error_fraction=allowed)
        table.finish({"stage": cause.stage, "cause": dict(cause.fingerprint_inputs), **counts[judge.path]})
    return table.read()


def score_again(
    data: Data, path: Path, draws: int | None, out: Path | None, allow_missing_images: bool
) -> Iterable[str]:
    """Computes every figure anew from stored predictions, and lists them.

    Args:
        out: where figures.json is written, if anywhere.

    Raises:
        UserError: there are no predictions of this benchmark, or some rows have none.
    """
    given = _read(path, data)
    found = _report(_answered(data, [given], allow_missing_images), given, draws)
    if out is not None:
        _write_figures(out, found)
    return list_report(data.suite, found)


def compare(data: Data, paths: tuple[Path, Path], draws: int | None, allow_missing_images: bool) -> Iterable[str]:
    """Lists the differences of two judges' figures by their stored predictions.

    Raises:
        UserError: as `score_again`.
    """
    a, b = (_read(path, data) for path in paths)
    data = _answered(data, (a, b), allow_missing_images)
    return list_comparison(
        (f"{paths[0]}", f"{paths[1]}"), data.excluded, compared(data.suite, data.rows, a, b, draws=draws)
    )


def _read(path: Path, data: Data) -> list[Prediction]:
    """What `carevl evaluate` wrote (its directory, or the Parquet file), or an official result file."""
    file = path / PREDICTIONS if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"no predictions at {file}")
    if file.suffix != ".parquet":
        return read_official(data.suite, file, data.rows, path.stem)
    found = from_table(pq.read_table(file))
    given = [prediction for prediction in found if prediction.benchmark == data.suite.name]
    if not given:
        names = ", ".join(sorted({prediction.benchmark for prediction in found})) or "nothing"
        raise UserError(f"{file} holds predictions of {names}, none of {data.suite.name}")
    return given


def _answered(data: Data, judges: Sequence[Sequence[Prediction]], allow_missing_images: bool) -> Data:
    """The rows to be scored: all, but for those without an image that some judge has not answered."""
    known = set.intersection(*({prediction.key for prediction in given} for given in judges))
    protocols = list(by_protocol(data.rows, judges[0]))
    return data.without_missing_images(protocols, lambda row: row.key not in known, allowed=allow_missing_images)


def _report(data: Data, given: Sequence[Prediction], draws: int | None) -> dict[str, Any]:
    """What figures.json holds: every judge's figures by protocol, the trivial judges' beside them."""
    of_judge: dict[str, list[Prediction]] = {}
    for prediction in given:
        of_judge.setdefault(prediction.judge, []).append(prediction)
    return {
        "benchmark": data.suite.name,
        "rows": len(data.rows),
        "rows_fingerprint": data.fingerprint,
        "excluded": list(data.excluded),
        "judges": {name: judged(data.suite, data.rows, some, draws=draws) for name, some in of_judge.items()},
        "baselines": baselines(data.suite, data.rows, by_protocol(data.rows, given), draws=draws),
    }


def _write_figures(out: Path, found: dict[str, Any]) -> None:
    write_atomically(out / FIGURES, json.dumps(found, indent=2, ensure_ascii=False).encode())
