"""The stages' keys, in order: what each table depends on, and so how it is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.data.drawn import DataRoot, data_root
from carevl.errors import SettingsError
from carevl.settings.loader import load_settings
from carevl.stages.rounds import RoundOutcomes, is_of_round, unroll
from carevl.store.run import Run, RunError
from carevl.store.stage_key import StageKey

if TYPE_CHECKING:
    from carevl.settings.tree import Settings
    from carevl.stages.base import Stage


def stage_keys(
    settings: Settings,
    run: Run,
    stages: Sequence[Stage] | None = None,
    *,
    decided: Mapping[str, StageKey] | None = None,
) -> dict[str, StageKey]:
    """Return every table's key, in the order in which the stages run. Nothing is written into the run directory.

    Args:
        stages: those of a run when None, up to the last round that helped or may.
        decided: keys that are taken as they are.
    """
    with data_root(settings, run) as root:
        return derive_keys(settings, run, root, stages, decided or {})


def derive_keys(
    settings: Settings, run: Run, root: DataRoot, stages: Sequence[Stage] | None, decided: Mapping[str, StageKey]
) -> dict[str, StageKey]:
    """Return as `stage_keys`, with the data where they are."""
    keys = dict(decided)
    for stage in unroll(settings, RoundOutcomes(run, lambda: keys)) if stages is None else stages:
        for table in stage.tables(settings):
            if table not in keys:
                inputs = {role: run.version(keys[name]) for role, name in stage.inputs(settings, table).items()}
                rest = stage.fingerprint_inputs(settings, root, table)
                key = StageKey(stage.place(table), {**({"inputs": inputs} if inputs else {}), **rest})
                keys[table] = stage.find_equal(run, key) if stage.find_equal else key
    return keys


def keys_until(keys: Mapping[str, StageKey], last: str | None) -> dict[str, StageKey]:
    """Return the keys up to and including a stage; `score` stands for all experts and `evaluate` for all judges.

    Of a round that is not made, since one before it did not help: up to the last that is.

    Raises:
        RunError: there is no such stage.
    """
    if last is None:
        return dict(keys)
    places = [n for n, name in enumerate(keys) if name == last or name.startswith(f"{last}/")]
    if not places and is_of_round(last):
        return {name: key for name, key in keys.items() if not name.startswith("evaluate/")}
    if not places:
        raise RunError(f"there is no stage {last!r}; the stages are {', '.join(keys)}")
    return dict(list(keys.items())[: places[-1] + 1])


def load_run(root: Path) -> tuple[Settings, Run]:
    """Return the settings of a run directory's last run, and the directory.

    Raises:
        RunError: the directory is not that of a run, or its settings cannot be read.
    """
    run = Run(root)
    if not run.settings.exists():
        raise RunError(f"{root} holds no settings.yaml: give the directory of a run, as in --run-dir")
    try:
        return load_settings(str(run.settings)), run
    except SettingsError as error:
        if (refusal := run.refusal) is not None:
            raise RunError(f"{refusal} ({error})") from None
        problem = run.find_settings_problem()
        named = f"{run.settings} {problem}: {error}" if problem else str(error)
        raise RunError(f"{named}; `carevl run SETTINGS --run-dir {root}` writes {run.settings} anew") from None
