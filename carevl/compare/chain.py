"""The stages of an arm with one seed, by what they depend on: equal fingerprints are made once for all arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from carevl.data.drawn import DataRoot
from carevl.pipeline import core as pipeline
from carevl.stages import evaluate
from carevl.store.run import Run, RunError
from carevl.store.stage_key import StageKey

if TYPE_CHECKING:
    from carevl.compare.labels import Labels
    from carevl.settings import Settings

VERSION = 1
BENCHMARK = "vl-rewardbench"
Causes = dict[str, StageKey]


def data(settings: Settings, where: Run) -> Causes:
    """The causes of what no seed changes: items, captions and scores."""
    found = pipeline.causes(settings, where)
    return {name: cause for name, cause in found.items() if name.split("/")[0] in ("ingest", "caption", "score")}


def chain(settings: Settings, labels: Labels | None, where: Run, shared: Mapping[str, StageKey]) -> Causes:
    """The causes of an arm's stages: those of `carevl run`, with the arm's own labels as `route` and its targets as
    `demonstrate`; beside them `router`, the routes as they were decided, and `judgments`, which all arms choose their
    targets from.

    Args:
        settings: with the arm's changes and the seed's.
        shared: from `data`.
    """
    own = pipeline.causes(settings, where)
    found = rebased(own, where, shared)
    router, told = found["route"], found["demonstrate"].facts
    read = {name: where.version(found[name]) for name in ("ingest", "route")}
    judgments = StageKey("compare/judgments", {**told, "inputs": read, "compare": VERSION})
    route = router
    if labels is not None:
        route = StageKey(
            "compare/labels", {"inputs": read, "compare": VERSION, "seed": settings.seed, **asdict(labels)}
        )
    inputs = {"route": where.version(route), "judgments": where.version(judgments)}
    targets = StageKey("compare/targets", {**told, "inputs": inputs, "compare": VERSION})
    found = rebased(own, where, {**shared, "route": route, "demonstrate": targets})
    return {**found, "router": router, "judgments": judgments}


def rebased(causes: Mapping[str, StageKey], where: Run, given: Mapping[str, StageKey]) -> Causes:
    """The causes with some of them given, and all that follow brought in line."""
    found: Causes = {}
    for name, cause in causes.items():
        facts = dict(cause.facts)
        if name not in given and "inputs" in facts:
            facts["inputs"] = {made_from: where.version(found[made_from]) for made_from in facts["inputs"]}
        found[name] = given.get(name, StageKey(cause.stage, facts))
    return found


def asked(causes: Mapping[str, StageKey], tests: Settings, where: Run) -> Causes:
    """The causes with the benchmarks of other settings to be evaluated on; see `on_benchmark`."""
    facts = evaluate.facts(tests, DataRoot.of(tests, where))
    return {
        name: StageKey(cause.stage, {**cause.facts, **facts}) if name.startswith("evaluate/") else cause
        for name, cause in causes.items()
    }


def on_benchmark(settings: Settings, path: str | None = None, images: str | None = None) -> Settings:
    """The settings with VL-RewardBench, asked in both orders, as their only benchmark.

    Args:
        path: other data than the development data, with their own directory of images.

    Raises:
        RunError: the settings do not name that benchmark.
    """
    for benchmark in settings.benchmarks:
        if benchmark.name == BENCHMARK:
            place = {} if path is None else {"path": path, "images": images}
            once = benchmark.model_copy(update={"protocols": ["strict"], "draws": 1, **place})
            return settings.model_copy(update={"benchmarks": [once]})
    raise RunError(f"compare: judges are compared on {BENCHMARK}, and the settings' benchmarks do not name it")
