"""Evaluate a run's judges on the benchmarks' test data; each time is listed in results.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from carevl.data.drawn import draw
from carevl.models.locate import prepare_models
from carevl.pipeline import results
from carevl.pipeline.downloads import models_by_setting
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.run import run_stage
from carevl.stages import evaluate
from carevl.stages.base import RunContext
from carevl.stages.rounds import RoundOutcomes, unroll
from carevl.store.run import Run

if TYPE_CHECKING:
    from carevl.settings.tree import Settings


def evaluate_final(settings: Settings, run: Run, log: Callable[[str], None]) -> dict[str, Any]:
    """Evaluate base, phase-1 and phase-2 judge on the benchmarks' test data, and list it in results.json.

    Raises:
        RunError: a benchmark has no test data.
    """
    tests = evaluate.with_test_data(settings)
    with run.lock():
        draw(settings, run)
        keys = stage_keys(settings, run)
        trained = {name: key for name, key in keys.items() if not name.startswith("evaluate/")}
        *_, last = unroll(settings, RoundOutcomes(run, lambda: trained))
        stage = replace(last, directory="final")
        keys = stage_keys(tests, run, (stage,), decided=trained)
        prepare_models(models_by_setting(tests, keys, (stage,)), log)
        run_stage(RunContext(tests, run, keys, log), stage)
        judges = {judge: keys[f"evaluate/{judge}"] for judge in evaluate.members(tests)}
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": tests.model_dump(mode="json"),
            "fingerprints": {judge: key.fingerprint for judge, key in judges.items()},
            "judges": results.judges(tests, run, {judge: run.table(key) for judge, key in judges.items()}),
        }
        results.add_final(run, entry)
    return entry
