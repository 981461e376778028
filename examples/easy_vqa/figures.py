"""What came out: figures of a finished run, and those that only somebody who has the answers can give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carevl.data.truth import read_truth, truth_of
from carevl.pipeline.keys import stage_keys
from carevl.settings.loader import load_settings
from carevl.stats.estimate import format_estimate
from carevl.stats.exact import share
from carevl.store.ingested import Ingested
from carevl.store.run import Run
from carevl.store.table import Table
from examples.easy_vqa.course import STAGES
from examples.easy_vqa.questions import Asked, observe, read


def collect(work: Path) -> dict[str, Any]:
    """Return the figures of everything that was made under `work`; shares have exact 95 % intervals."""
    settings, run = load_settings(str(work / "settings.yaml"), []), Run.at(work / "run")
    results = json.loads((work / "run/results.json").read_text())
    tables = {name: run.table(key) for name, key in stage_keys(settings, run).items()}
    lessons = {stage.name: json.loads((work / "models" / stage.name / "done.json").read_text()) for stage in STAGES}
    return {
        "seconds": {
            "lessons": {name: round(facts["seconds"]) for name, facts in lessons.items()},
            "run": {stage["name"]: round(stage["seconds"]) for stage in results["stages"]},
        },
        "seen": _seen(tables, work / "data"),
        **{name: results[name] for name in ("routing", "low_routing", "targets", "pairs") if name in results},
        "low_router": {name: (tables["route_low"].manifest or {}).get(name) for name in ("notes", "groups")},
        "test": results["final"][-1]["judges"],
    }


def lines(figures: dict[str, Any]) -> Iterator[str]:
    """Yield those figures that the run has not printed."""
    for name, estimate in figures["seen"].items():
        yield f"{name:44s} {format_estimate(estimate)}"
    for part, seconds in figures["seconds"].items():
        yield f"minutes, {part}: {sum(seconds.values()) / 60:.1f}"


def _seen(tables: dict[str, Table], data: Path) -> dict[str, Any]:
    """Return how often captioner, base judge and phase-1 judge are right, on pictures that are in no lesson."""
    pictures = {picture.sha256: picture for picture in read("train")}
    items = {row["item_id"]: row for row in Ingested.of(tables).items.read().to_pylist() if row["responses"]}
    truths = read_truth(data)
    captions = [
        row["text"] == f"There is a {shown}."
        for row in tables["caption"].read().to_pylist()
        if (picture := pictures.get(row["image_id"])) and (shown := picture.shown)
    ]
    answerable = [
        any(truth.rating(text) == 5 for text in item["responses"])
        for item in items.values()
        if (truth := truth_of(truths, item))
    ]
    testimony = [
        row["evidence"] == observe(shown, item["question"], answer)
        for row in tables["testify"].read().to_pylist()
        if (item := items.get(row["item_id"]))
        and (shown := pictures[item["images"][0]].shown)
        and (answer := _answer(pictures[item["images"][0]].asked, item["question"]))
    ]
    hits = {"captions right": captions, "items with a right response": answerable, "testimony right": testimony}
    return {name: share(each) for name, each in hits.items() if each}


def _answer(asked: list[Asked], question: str) -> str:
    return next(each.answer for each in asked if each.text == question)
