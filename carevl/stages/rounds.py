"""Rounds of phase 2: the stages from the judge's samples to its training once more, from the judge of the round before.

The first round is phase 2 itself, with the tables that it always has. Those of another lie in `round-N/`: there the
judge of the round before stands where phase 1's stood. Labelled pairs (`examine`) say whether a round helped: one that
did not is the last, and but for the first its judge is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from carevl.stages import STAGES, dpo, evaluate, gather, route_low, sample, score_testimony, select, testify
from carevl.stages.base import Counts, LoadedModel, RunContext, Stage
from carevl.stages.examine import CHOICE, examine_stage

if TYPE_CHECKING:
    from carevl.cluster.resources import Reservation
    from carevl.data.drawn import DataRoot
    from carevl.settings.tree import Settings
    from carevl.store.run import Run
    from carevl.store.stage_key import StageKey

CHOOSING = (testify.STAGE, sample.STAGE, score_testimony.STAGE, route_low.STAGE, select.STAGE)
"""From a judge to the pairs that it is trained on next."""
_REPEATED = (*CHOOSING, dpo.STAGE)


def in_round(number: int, table: str) -> str:
    """Return what a table of the first round is called in another."""
    return table if number == 1 else f"round-{number}/{table}"


def is_of_round(table: str) -> bool:
    """Return whether a table, or a stage, is one of a round after the first."""
    return table.startswith("round-")


def judge_name(number: int) -> str:
    """Return what the judge after so many rounds is called where it is examined."""
    return {0: "phase1", 1: "phase2"}.get(number, f"round-{number}")


@dataclass(frozen=True)
class RoundOutcomes:
    """What the tables of a run say of its rounds, as far as they are made."""

    run: Run
    keys: Callable[[], Mapping[str, StageKey]]
    """The keys of the tables, as far as they are known."""

    def manifest(self, table: str) -> Mapping[str, Any] | None:
        """Return the manifest of a finished table."""
        key = self.keys().get(table)
        return None if key is None else self.run.table(key).last_manifest

    def lacks_pairs(self, number: int) -> bool:
        """Return whether no pair was selected in a round, so that there is nothing to train on."""
        manifest = self.manifest(in_round(number, "select"))
        return manifest is not None and not manifest["rows_out"]

    def examined(self, number: int) -> Mapping[str, Any] | None:
        """Return what the manifest says of the judge after so many rounds: `pairs` and those that are `right`."""
        return self.manifest(f"examine/{judge_name(number)}")

    def helped(self, number: int) -> bool | None:
        """Return whether more labelled pairs were right after a round than before; None where that is not known yet."""
        if self.lacks_pairs(number):
            return False
        before, after = self.examined(number - 1), self.examined(number)
        return None if before is None or after is None else after["right"] > before["right"]

    def lines(self, most: int) -> Iterator[str]:
        """Yield a line for each round of which it is known whether it helped.

        Args:
            most: rounds that the settings ask for.
        """
        for number in range(1, most + 1) if most > 1 else ():
            if (helped := self.helped(number)) is None:
                return
            yield f"round {number:<10d} {self._describe(number)}{'' if helped else _describe_end(number, most)}"
            if not helped:
                return

    def _describe(self, number: int) -> str:
        if self.lacks_pairs(number):
            return "has no pair of judgments to train on"
        before, after = self.examined(number - 1) or {}, self.examined(number) or {}
        verb = "helped" if self.helped(number) else "did not help"
        right = f"{after['right']} of {after['pairs']} labelled pairs right in both orders, {before['right']} before"
        return f"{verb}: {right}"

    def last_kept(self, most: int) -> int:
        """Return the number of the last round that is known to be kept, the first if none is."""
        return max((n for n in range(1, most + 1) if all(self.helped(other) for other in range(1, n + 1))), default=1)


def _describe_end(number: int, most: int) -> str:
    """Return what a round that did not help means, as the end of a sentence."""
    kept = "; its judge stays, being phase 2's" if number == 1 else "; it is not kept"
    return kept + (f", and round {number + 1} is not made" if number < most else "")


def unroll(settings: Settings, outcomes: RoundOutcomes | None = None) -> Iterator[Stage]:
    """Yield the stages of a run in order, those of each round in turn until one is known not to have helped.

    Args:
        outcomes: asked about a round when its stages have been yielded; all rounds help when None.
    """
    if settings.rounds == 1:
        yield from STAGES
        return

    def failed(number: int) -> bool:
        return outcomes is not None and outcomes.helped(number) is False

    for stage in STAGES[:-1]:
        yield stage
        if stage is gather.STAGE:
            yield CHOICE
    yield _examine(0, "sft")
    yield _examine(1, "dpo")
    number = 1
    while number < settings.rounds and not failed(number):
        number += 1
        yield from (_repeat(stage, number) for stage in CHOOSING)
        if outcomes is None or not outcomes.lacks_pairs(number):
            yield _repeat(dpo.STAGE, number)
            yield _examine(number, in_round(number, "dpo"))
    yield evaluate_stage(number - 1 if number > 1 and failed(number) else number)


def all_stages(settings: Settings) -> tuple[Stage, ...]:
    """Return the stages of a run all of whose rounds help."""
    return tuple(unroll(settings))


def evaluate_stage(kept: int) -> Stage:
    """Return the stage `evaluate`, whose judge of phase 2 is that of the last round that was kept."""
    if kept == 1:
        return evaluate.STAGE

    def inputs(settings: Settings, table: str) -> Mapping[str, str]:
        of_first = evaluate.STAGE.inputs(settings, table)
        return {role: in_round(kept, name) if name == "dpo" else name for role, name in of_first.items()}

    return replace(evaluate.STAGE, inputs=inputs, run=lambda context: evaluate.STAGE.run(view_round(context, kept)))


def view_round(context: RunContext, number: int) -> RunContext:
    """Return a context in which the tables of a round have the names of the first round's.

    The trainings before it are called `sft`, `round-1/dpo`, `round-2/dpo`, ….
    """
    earlier = {f"round-{n}/dpo": context.keys[in_round(n, "dpo")] for n in range(1, number)}
    prefix = in_round(number, "")
    own = {name.removeprefix(prefix): key for name, key in context.keys.items() if name.startswith(prefix)}
    return replace(context, keys={**context.keys, **earlier, **own}, phases=("sft", *earlier))


def _examine(number: int, phase: str) -> Stage:
    """Return the stage that examines the judge after so many rounds, with which the next would begin."""
    stage = examine_stage(judge_name(number), phase)
    return replace(stage, run=lambda context: stage.run(view_round(context, number + 1)))


def _repeat(stage: Stage, number: int) -> Stage:
    """Return a stage of the first round as another has it: other tables, and the judge of the round before."""
    prefix = in_round(number, "")
    names = {repeated.name for repeated in _REPEATED}

    def own(table: str) -> str:
        return table.removeprefix(prefix)

    def input_of(name: str) -> str:
        if name == "sft":
            return in_round(number - 1, "dpo")
        return in_round(number, name) if name.partition("/")[0] in names else name

    def inputs(settings: Settings, table: str) -> Mapping[str, str]:
        return {role: input_of(name) for role, name in stage.inputs(settings, own(table)).items()}

    def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> Mapping[str, Any]:
        return stage.fingerprint_inputs(_after_dpo(settings), root, own(table))

    def reservations(settings: Settings) -> list[Reservation]:
        return [replace(need, stage=in_round(number, need.stage)) for need in stage.reservations(settings)]

    def models(settings: Settings, table: str) -> list[LoadedModel]:
        return list(stage.models(settings, own(table)))

    def run(context: RunContext) -> Counts:
        view = replace(
            view_round(context, number),
            stage=stage,
            pending=[own(table) for table in context.pending],
            log=lambda line: context.log(prefix + line),
        )
        return {in_round(number, table): counts for table, counts in stage.run(view).items()}

    return replace(
        stage,
        name=in_round(number, stage.name),
        inputs=inputs,
        fingerprint_inputs=fingerprint_inputs,
        reservations=reservations,
        models=models,
        run=run,
    )


def _after_dpo(settings: Settings) -> Settings:
    """Return settings for what a round depends on: the training before it has adapters if DPO has."""
    sft = settings.sft.model_copy(update={"lora": settings.dpo.lora})
    return settings.model_copy(update={"sft": sft})
