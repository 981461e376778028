"""Reads every file of a run that a command may read, and says what is not what was written, and how it is mended."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.cluster import throughput
from carevl.data import drawn
from carevl.pipeline import results
from carevl.pipeline.keys import stage_keys
from carevl.stages import ingest
from carevl.store import published
from carevl.store.damage import find_json_problem
from carevl.store.listing import called, describe_problems, find_problems
from carevl.store.run import Run
from carevl.store.table import Table
from carevl.training import record

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.tree import Settings


@dataclass(frozen=True)
class Damage:
    """What is the matter with files of one owner: a table, the published judge, a drawn world, the run itself.

    `problems` are in words, by path below the owner's directory; `mend` removes what is damaged, so that the next run
    makes it again where it needs it.
    """

    owner: str
    problems: Mapping[str, str]
    mend: Callable[[], object]

    def lines(self) -> Iterator[str]:
        """Yield a line for each file."""
        yield from (f"{self.owner:16s} {called(file)} {problem} ({file})" for file, problem in self.problems.items())

    def line(self) -> str:
        """Return a line for the first of them."""
        return f"{self.owner:16s} {describe_problems(self.problems)}"


def find_damages(settings: Settings, run: Run) -> Iterator[Damage]:
    """Read every file of a run, and yield what is damaged, owner by owner."""
    for name, table in run.tables(stage_keys(settings, run)).items():
        problems = table.find_damage(verify=True)
        yield Damage(name, problems, partial(table.reopen, list(problems)))
        for place, found in _find_scratch_problems(table).items():
            yield Damage(name, found, partial(_remove, table.directory / place))
    judge = run.root / "judge"
    is_marked = not judge.is_dir() or (judge / published.MARKER).exists()
    problems = published.find_damage(judge, verify=True) if is_marked else {published.MARKER: "is missing"}
    yield Damage("judge", problems, partial(_remove, *(judge / file for file in problems)))
    for world, found in drawn.find_damage(settings, run, verify=True).items():
        yield Damage(world, found, partial(_remove, run.root / world))
    of_run = {
        run.settings.name: run.find_settings_problem(),
        results.RESULTS: find_json_problem(run.root / results.RESULTS),
        results.COMPARISON: find_json_problem(run.root / results.COMPARISON),
        throughput.FILE: find_json_problem(run.root / throughput.FILE),
        f"judge/{published.INJECTION}": find_json_problem(judge / published.INJECTION),
    }
    for file, problem in of_run.items():
        if problem is not None:
            mend = _put_aside if file in (results.RESULTS, results.COMPARISON) else _remove
            yield Damage("run", {file: problem}, partial(mend, run.root / file))


def mend(settings: Settings, run: Run, log: Callable[[str], None]) -> None:
    """Remove what is damaged of a run, with a line for each owner, so that it is made again."""
    for damage in find_damages(settings, run):
        if damage.problems:
            log(damage.line())
            damage.mend()


def _find_scratch_problems(table: Table) -> Mapping[str, Mapping[str, str]]:
    """Return what is the matter with what a training alone works with, by the place that is removed whole."""
    found: dict[str, dict[str, str]] = {}
    for checkpoint in sorted(table.directory.glob("checkpoints/step-*")):
        place = checkpoint.relative_to(table.directory).as_posix()
        problems = record.find_checkpoint_problems(checkpoint)
        found[place] = {f"{place}/{file}": problem for file, problem in problems.items()}
    passed_on = Table(table.directory / "reference").find_damage(verify=True)
    found |= {f"reference/{file}": {f"reference/{file}": problem} for file, problem in passed_on.items()}
    data = table.directory / "data"
    if data.is_dir():
        problems = find_problems(data, record.read_record(table.directory).get("data", {}), verify=True)
        found["data"] = {f"data/{file}": problem for file, problem in problems.items()}
    features = data / "features"
    kept = [record.find_feature_problems(listing) for listing in sorted(features.glob("*.json"))]
    found["data/features"] = {f"data/features/{file}": problem for each in kept for file, problem in each.items()}
    return found


def _put_aside(file: Path) -> None:
    """Keep what is left of figures: those on test data are not made a second time."""
    file.replace(file.with_suffix(".damaged"))


def _remove(*places: Path) -> None:
    for place in places:
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def changed_sources(root: DataRoot, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line about each file of the sources whose contents are not those that ingest read.

    Fingerprints have its size and time, which an edit may leave as they were.
    """
    read = manifest.get("sources", {})
    for file, digest in ingest.hash_sources(root).items() if read else ():
        if read.get(file, digest) != digest:
            yield f"{'ingest':16s} {file} is not what was read, though size and time are: touch it, to read it again"
