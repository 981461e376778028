"""A run whose ingest is real, with tables of the later stages written by hand in their schemas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from carevl.data.drawn import draw
from carevl.judging.prompts import Task, judge_prompt, write_judgment
from carevl.pipeline.keys import stage_keys
from carevl.settings.loader import load_settings
from carevl.stages import ingest
from carevl.store.ingested import Ingested
from carevl.store.run import Run
from carevl.store.schemas import PAIRS, ROUTES, TARGETS
from carevl.store.stage_key import StageKey
from carevl.store.table import Table

WORLD = ["miniworld.items=60", "miniworld.calibration_images=15", "data.parts=3"]
Row = dict[str, Any]


def routes(item: Row) -> list[Row]:
    """The first pair of every item; high for two of three, for the longer response."""
    winner = int(len(item["responses"][1]) > len(item["responses"][0]))
    high = int(item["item_id"][:4], 16) % 3 > 0
    facts = {"item_id": item["item_id"], "first": 0, "second": 1, "winner": winner}
    return [facts | {"route": "high" if high else "low", "reason": "above_threshold" if high else "below_threshold"}]


def targets(item: Row) -> list[Row]:
    """A judgment of the first pair."""
    prompt = judge_prompt("pairwise", item["question"], item["responses"], (1, 0))
    text = write_judgment("It shows so.", winner=1)
    facts = {"item_id": item["item_id"], "task": "pairwise", "order": [1, 0]}
    return [facts | {"prompt": prompt, "places": [0], "text": text, "evidence": True}]


def judged(item: Row) -> list[Row]:
    """Two judgments of the first pair that contradict each other, and two of its first response alone."""
    facts = {"item_id": item["item_id"], "rank": 0, "places": [0], "winner": 0, "loser": 1}
    shown: list[tuple[Task, tuple[int, ...], list[str]]] = [
        ("pairwise", (0, 1), [write_judgment("It shows so.", winner=n) for n in (1, 2)]),
        ("pointwise", (0,), [write_judgment("It shows so.", rating=n) for n in (5, 1)]),
    ]
    return [
        facts
        | {"task": task, "order": order, "prompt": judge_prompt(task, item["question"], item["responses"], order)}
        | {"chosen": chosen, "rejected": rejected, "score_chosen": 0.9, "score_rejected": 0.1}
        for task, order, (chosen, rejected) in shown
    ]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run, settings = Run(tmp_path_factory.mktemp("run")), load_settings("mini", WORLD)
    draw(settings, run)
    key = stage_keys(settings, run)["ingest"]
    counts = ingest.run_ingest(settings, run, run.table(key).directory, lambda *_: None)
    run.table(key).finish(
        {"stage": "ingest", "fingerprint": key.fingerprint, "cause": dict(key.fingerprint_inputs), **counts}
    )
    items = Ingested(run.table(key).directory).items

    def make(stage: str, inputs: Row, below: str, of_item: Callable[[Row], list[Row]], schema: pa.Schema) -> str:
        key = StageKey(stage, {"inputs": inputs})
        table = Table(run.table(key).directory / below)
        for number in items.parts():
            rows = [row for item in items.read(number).to_pylist() if not item["error"] for row in of_item(item)]
            table.write(number, pa.Table.from_pylist(rows, schema))
        facts = {"stage": stage, "fingerprint": key.fingerprint, "cause": {"inputs": inputs}}
        run.table(key).finish(facts)
        return key.fingerprint

    read = {"ingest": key.fingerprint}
    routed = make("route", read, "", routes, ROUTES)
    make("demonstrate", read | {"route": routed}, "targets", targets, TARGETS)
    sampled = make("sample", read | {"route": routed}, "", judged, PAIRS)
    make("select", {"sample": sampled}, "", judged, PAIRS)
    return run


@pytest.fixture
def items(run: Run) -> dict[str, Row]:
    """The run's items by id."""
    manifest = run.latest("ingest")
    assert manifest is not None
    table = Ingested(run.root / "ingest" / manifest["fingerprint"]).items
    return {row["item_id"]: row for row in table.read().to_pylist()}


@pytest.fixture
def judge() -> Path:
    """The shipped base judge."""
    from carevl.miniworld.weights import WEIGHTS

    return WEIGHTS / "judge"
