"""Stored targets and pairs joined with their images, as rows to train on; and labelled pairs to validate on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.confidence.label_shares import serves
from carevl.judging.prompts import write_judgment
from carevl.models.judge_spec import asking_of
from carevl.settings.asking import Asking
from carevl.stages.sampling import both_orders
from carevl.stats.draws import hash_uniform
from carevl.store.earlier_versions import with_places
from carevl.store.run import RunError
from carevl.store.stage_key import StageKey
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.settings.training import Training
    from carevl.settings.tree import Settings
    from carevl.store.ingested import Ingested
    from carevl.store.run import Run
    from carevl.training.driver import Trained

VERSION = 2
_FILES = pa.list_(pa.large_binary())
TRAINED_FILES = ("judge/*.safetensors", "judge/*.json", "adapter/*.safetensors")
"""The contents of a training: weights, and how they are used. An adapter's configuration says where its base lies."""


def training_inputs(training: Training) -> dict[str, Any]:
    """Return what a phase depends on, apart from its rows and the judge it begins with."""
    return {"version": VERSION, **training.learned()}


def find_equal_training(run: Run, key: StageKey) -> StageKey:
    """Return the key of a training, finished or begun, which differs by a `batch_tokens` that gives the same items.

    Those that are there already come before others.
    """
    if run.table(key).is_begun:
        return key
    from carevl.training.record import learned_differences

    for table, cause in run.causes(key.stage):
        if not learned_differences(table.directory, cause, key.fingerprint_inputs, "training"):
            return StageKey(key.stage, cause)
    return key


def write_rows(
    learned: Table,
    columns: Mapping[str, str],
    ingested: Ingested,
    target: Table,
    change: Callable[[pa.Table, pa.Table], pa.Table] | None = None,
) -> list[int]:
    """Join images to the parts of a table; return the parts that have rows.

    Args:
        learned: TARGETS or PAIRS.
        columns: name in training to name in the table.
        target: receives `item_id`, `images` (files), `places` and `columns`.
        change: a part of `learned`, and `item_id` and `responses` of its items, to the part that is joined.
    """
    filled = []
    for number in learned.parts():
        rows = with_places(learned.read(number))
        if not rows.num_rows:
            continue
        filled.append(number)
        if target.is_made(number):
            continue
        if change is not None:
            rows = change(rows, ingested.items.read(number, ["item_id", "responses"]))
        items = ingested.items.read(number, ["item_id", "images"]).to_pylist()
        shown = {row["item_id"]: row["images"] for row in items}
        files = _files(ingested, number)
        images = [[files[name] for name in shown[item_id]] for item_id in rows["item_id"].to_pylist()]
        joined = {"item_id": rows["item_id"], "images": pa.array(images, _FILES), "places": rows["places"]}
        target.write(number, pa.table(joined | {name: rows[column] for name, column in columns.items()}))
    return filled


def write_dev(
    settings: Settings,
    ingested: Ingested,
    n_pairs: int | None,
    target: Table,
    *,
    setting: str = "dev_pairs",
    without: int = 0,
) -> list[int]:
    """Labelled pairs, drawn by chance, as rows for `train(dev=…)`; return the parts that have rows.

    Only labelled images serve that are there to choose judges by (`labels.choice`), where they are divided.

    Args:
        n_pairs: how many; all when None.
        setting: what asks for them; at `without` it does not.

    Raises:
        RunError: no such image has a pair of which one response is better.
    """
    seed, shares, of_routers = settings.seed, settings.labels, settings.router.seed
    drawn: list[tuple[float, int, str, int, int]] = []
    for number in ingested.items.parts():
        for item in ingested.items.read(number, ["item_id", "images", "gold", "error"]).to_pylist():
            if item["gold"] is None or item["error"] is not None:
                continue
            name = item["item_id"]
            if not serves([*item["images"], name][0], "choice", shares, of_routers):
                continue
            pairs = itertools.combinations(range(len(item["gold"])), 2)
            pairs_of_item = [(i, j) for i, j in pairs if item["gold"][i] != item["gold"][j]]
            drawn += [(hash_uniform(seed, name, i, j, "dev"), number, name, i, j) for i, j in pairs_of_item]
    if not drawn:
        raise RunError(
            f"{setting}: no source has labels that serve to choose judges by; declare one with labels: true, raise "
            f"labels.choice, or set {setting} to {without}"
        )
    of_part: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for _, number, name, i, j in sorted(drawn)[:n_pairs]:
        of_part.setdefault(number, {}).setdefault(name, []).append((i, j))
    for number, chosen in of_part.items():
        if not target.is_made(number):
            target.write(number, _dev_rows(ingested, number, chosen, asking_of(settings.judge)))
    return sorted(of_part)


def _dev_rows(ingested: Ingested, number: int, chosen: Mapping[str, list[tuple[int, int]]], asking: Asking) -> pa.Table:
    files = _files(ingested, number)
    rows = []
    for item in ingested.items.read(number).to_pylist():
        for i, j in chosen.get(item["item_id"], ()):
            for prompted in both_orders(i, j):
                first, second = (item["gold"][shown] for shown in prompted.order)
                right = 1 if first > second else 2
                rows.append(
                    {
                        "item_id": f"{item['item_id']}, responses {i} and {j}",
                        "images": [files[name] for name in item["images"]],
                        **prompted.columns(item, asking),
                        "chosen": write_judgment("", winner=right),
                        "rejected": write_judgment("", winner=3 - right),
                    }
                )
    table = pa.Table.from_pylist(rows)
    return table.set_column(1, "images", table["images"].cast(_FILES))


def _files(ingested: Ingested, number: int) -> dict[str, bytes]:
    """Return the files of the images that items of a part show, by image_id."""
    images = ingested.read_images(number, ["image_id", "bytes"])
    return dict(zip(images["image_id"].to_pylist(), images["bytes"].to_pylist(), strict=True))


def write_dev_parts(settings: Settings, training: Training, ingested: Ingested, directory: Path) -> list[Path]:
    """Write as many labelled pairs as a phase is validated on; return their files, none where it asks for none."""
    if not training.dev_pairs:
        return []
    target = Table(directory / "dev")
    numbers = write_dev(settings, ingested, training.dev_pairs, target)
    return [target.part(number) for number in numbers]


def batch_token_facts(key: StageKey, training: Training, log: Callable[[str], None]) -> dict[str, Any]:
    """Return for the manifest, and log, that a phase is finished with another `batch_tokens` than it was begun with."""
    begun, finished = key.fingerprint_inputs["training"]["batch_tokens"], training.batch_tokens
    if begun == finished:
        return {}
    log(f"batch_tokens {begun} -> {finished}: the items are the same, and losses agree but for rounding")
    return {"batch_tokens": {"begun": begun, "finished": finished}}


def training_counts(trained: Trained) -> dict[str, Any]:
    """Return what the manifest of a phase says."""
    last = trained.curve[-1] if trained.curve else {}  # a log that is gone is no reason to train again
    fallbacks = list(dict.fromkeys(step["fallback"] for step in trained.curve if "fallback" in step))
    facts = {name: value for name, value in last.items() if name not in ("seconds", "step", "items", "broken")}
    return {
        "rows_in": trained.items + len(trained.errors),
        "rows_out": trained.items,
        "errors": len(trained.errors),
        "steps": len(trained.curve),
        "last_step": facts,
        **({"fallbacks": fallbacks} if fallbacks else {}),
        **({} if trained.rounding is None else {"rounding": asdict(trained.rounding)}),
    }
