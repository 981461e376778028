"""`carevl audit`: read a run directory and hand its tables, or pairs and a judge, to the audit. Changes no table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from carevl.audit.findings import find
from carevl.audit.injection import LINES, ShownPair, ask_pairs, forged_turn, measure_injection
from carevl.audit.items import ItemFacts
from carevl.audit.ledger import Tree
from carevl.audit.outside_texts import count_outside_texts
from carevl.audit.pairs import audit_pairs
from carevl.audit.response_text import measure_response_text
from carevl.audit.rewrites import audit_styles, sample_items
from carevl.data.drawn import draw
from carevl.data.pictures import picture
from carevl.data.spill import home_of
from carevl.errors import UserError
from carevl.judging.turns import turns_of
from carevl.models.engines import generator
from carevl.models.experts import EXPERT_KINDS
from carevl.models.judge_spec import JudgeSpec, asking_of
from carevl.models.locate import loading_arguments, model_directory, prepare_models
from carevl.models.prompts import load_processor
from carevl.pipeline.keys import keys_until, load_run, stage_keys
from carevl.pipeline.publish import record_injection
from carevl.pipeline.results import drawn_truths
from carevl.settings.requests import is_endpoint
from carevl.stages.route import read_fitting
from carevl.stats.draws import hash_uniform
from carevl.store.ingested import Ingested
from carevl.store.run import Run, RunError
from carevl.store.table import Table

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.confidence.pairs import Pairs
    from carevl.settings.tree import Settings


def audit(root: Path, rewrites: int, log: Callable[[str], None]) -> Tree:
    """Measure all that an audit of a run measures, and list its findings.

    Args:
        root: the directory of a run.
        rewrites: about how many items every expert scores again in other styles; 0 for none.

    Raises:
        RunError: no run lies here, or captions and scores are not there for its settings.
    """
    settings, run = load_run(root)
    draw(settings, run)
    tables = _finished(settings, run, "score")
    ingested = Ingested.of(tables)
    items = ingested.items
    scores = [tables[f"score/{expert.name}"] for expert in settings.caption_experts]
    fitting = read_fitting(items, scores, [expert.name for expert in settings.caption_experts])
    facts = ItemFacts.read(items, fitting.pairs, drawn_truths(settings, run))
    log(f"{len(fitting.pairs)} pairs read")
    report = audit_pairs(settings.router, fitting.pairs, fitting.labelled, fitting.unlabelled, facts)
    report["texts"] = count_outside_texts(items)
    report["response_text"] = _audit_response_text(fitting.pairs, facts)
    log("pairs measured")
    if rewrites:
        sampled = sample_items(ingested, tables["caption"], scores, rewrites)
        read = [expert for expert in settings.caption_experts if not EXPERT_KINDS[expert.kind].sees_images]
        report["style"] = audit_styles(read, fitting.pairs, sampled)
        log("rewrites scored")
    report["findings"] = [asdict(finding) for finding in find(report)]
    return {"run": str(root), **report}


def _audit_response_text(pairs: Pairs, facts: ItemFacts) -> Tree:
    """Measure whether responses tell by their words which is right, by source, where labels or the truth are known."""
    known = np.where(np.isnan(pairs.gold), facts.label(pairs).gold, pairs.gold).astype(np.float64)
    source = np.array(facts.source)[pairs.item]
    groups = {name: source == name for name in sorted(set(facts.source))}
    return measure_response_text(facts.texts(pairs), known, pairs.images(), groups)


def audit_judge(root: Path, path: str, n_pairs: int, log: Callable[[str], None], *, engine: str | None = None) -> Tree:
    """Measure what lines that are appended to responses do to a judge's verdicts, on about `n_pairs` pairs of a run.

    Args:
        root: the directory of a run; its judge's settings hold, but for what is given here.
        path: of the judge: a directory or hub id.
        engine: null: the run's.

    Raises:
        RunError: no run lies here, its items are not there, or no pair has a verdict.
        UserError: the judge cannot be loaded, or is an endpoint.
    """
    if is_endpoint(path):
        raise UserError(f"{path}: of an endpoint no chat template is known to forge a turn by; audit what it serves")
    settings, run = load_run(root)
    draw(settings, run)
    ingested = Ingested.of(_finished(settings, run, "gather" if settings.respond.models else "ingest"))
    changes = {"path": path, "revision": None, "adapter": None, **({"engine": engine} if engine else {})}
    judge = settings.judge.model_copy(update=changes)
    prepare_models({"judge": judge}, log)
    pixels = settings.data.resize_pixels
    pairs = sample_pairs(
        ingested, n_pairs, settings.seed, JudgeSpec.of(judge).resize_pixels if pixels is None else pixels
    )
    log(f"{len(pairs)} pairs read; each is judged {1 + 2 * len(LINES)} times")
    turn = forged_turn(load_processor(str(model_directory(judge)), **loading_arguments(judge)))
    winners = ask_pairs(generator(judge), asking_of(judge), pairs, turn, judge.max_tokens)
    n_read = sum(row[0] is not None for row in winners)
    if not n_read:
        raise RunError(f"{path}: none of {len(pairs)} judgments has a verdict; `carevl check` shows how it is asked")
    measured = {"pairs": len(pairs), "read": n_read, "lines": measure_injection(pairs, winners)}
    return {"run": str(root), "judge": path, **measured}


def keep_beside_judge(report: Tree) -> None:
    """Keep what `audit_judge` measured of a judge that a run has published beside it, and say it in its card.

    Raises:
        RunError: another process holds that run's directory, it cannot be written, or a later carevl has written it.
    """
    judge = Path(report["judge"])
    publisher = Run(judge.absolute().parent)
    with publisher.lock() if publisher.settings.exists() else nullcontext():
        record_injection(judge, {name: report[name] for name in ("pairs", "read", "lines")})


def sample_pairs(ingested: Ingested, n: int, seed: int, resize_pixels: int | None) -> list[ShownPair]:
    """Read pairs of the first items of every part, about n in all, labelled ones first, each in an order by chance.

    A part's items lie in the order of a hash, so the first of them are a fair sample. Nothing was trained on labelled
    ones.
    """
    parts, pairs = ingested.items.parts(), []
    for number in parts:
        rows = ingested.items.read(number, _SHOWN)
        rows = rows.filter(pc.and_(rows["error"].is_null(), pc.greater(pc.list_value_length(rows["responses"]), 1)))
        labelled, others = rows.filter(rows["gold"].is_valid()), rows.filter(rows["gold"].is_null())
        items = pa.concat_tables([labelled, others]).slice(0, -(-n // len(parts))).to_pylist()
        needed = {name for item in items for name in item["images"]}
        images = ingested.read_images(number)
        of_id = {
            row["image_id"]: row
            for row in images.filter(pc.is_in(images["image_id"], pa.array(needed, pa.string()))).to_pylist()
        }
        for item in items:
            pictures = tuple(picture(of_id[name], resize_pixels=resize_pixels) for name in item["images"])
            pairs.append(_shown(item, pictures, seed))
    return pairs


_SHOWN = ["item_id", "images", "places", "turns", "question", "responses", "gold", "error"]


def _shown(item: Mapping[str, Any], images: tuple[Image, ...], seed: int) -> ShownPair:
    """Return two responses of an item, of which one is better where a label says so."""
    gold = item["gold"] or [0.0] * len(item["responses"])
    places = itertools.combinations(range(len(gold)), 2)
    pair = next((pair for pair in places if gold[pair[0]] != gold[pair[1]]), (0, 1))
    first, second = pair if hash_uniform(seed, item["item_id"], "shown") < 0.5 else pair[::-1]
    right = None if gold[first] == gold[second] else int(gold[second] > gold[first])
    responses = item["responses"][first], item["responses"][second]
    return ShownPair(home_of(item), images, turns_of(item), responses, right)


def _finished(settings: Settings, run: Run, last: str) -> Mapping[str, Table]:
    """Return the tables of a run up to a stage."""
    causes = keys_until(stage_keys(settings, run), last)
    for name, cause in causes.items():
        action, reason = run.action(cause)
        if action != "skip":
            raise RunError(
                f"{run.root}: {name} is not there for the run's settings and models ({reason}); make it with: "
                f"carevl run {run.settings} --run-dir {run.root}"
            )
    return {name: run.table(cause) for name, cause in causes.items()}
