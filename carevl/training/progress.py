"""The log of a training's steps, and a summary of the last ones for a person who watches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carevl.periodic import call_every
from carevl.store.table import write_atomically

STEPS = "steps.jsonl"
"""In the directory of a training: its log."""
VALIDATION = ("held_out", "dev_accuracy")
"""Facts of a step after which the judge was validated."""
_RECENT = 10
_FALLEN = 1.0
"""Nats below the reference from which on both sides of the pairs count as fallen."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands; means over its last ten steps.

    `loss` in nats; `accuracy` (share of pairs whose chosen judgment has the larger reward) and `margin` (of rewards)
    are None outside dpo; `tokens_per_second` are useful ones, over all workers; `warning` is a sentence or None.
    """

    step: int
    steps: int
    loss: float
    accuracy: float | None
    margin: float | None
    tokens_per_second: float
    seconds_left: float
    warning: str | None

    @classmethod
    def of(cls, curve: Sequence[Mapping[str, Any]], steps: int, beta: float) -> Progress:
        """Summarise a log that has at least one step.

        Args:
            steps: steps of the whole training.
            beta: that of dpo: rewards are beta times nats.
        """
        recent = curve[-_RECENT:]
        seconds = sum(sum(facts["seconds"].values()) for facts in recent)
        step = int(curve[-1]["step"])
        return cls(
            step=step,
            steps=steps,
            loss=_mean(recent, "loss"),
            accuracy=_mean(recent, "rewards/accuracies") if "rewards/accuracies" in recent[-1] else None,
            margin=_mean(recent, "rewards/margins") if "rewards/margins" in recent[-1] else None,
            tokens_per_second=sum(facts["tokens"] for facts in recent) / max(seconds, 1e-9),
            seconds_left=seconds / len(recent) * (steps - step),
            warning=_warning(recent, beta),
        )

    def line(self) -> str:
        """Return one line for a terminal."""
        preference = "" if self.accuracy is None else f"  accuracy {self.accuracy:.2f}  margin {self.margin:.3f}"
        rate = f"{self.tokens_per_second:.0f} tokens/s  {self.seconds_left:.0f} s left"
        warning = "" if self.warning is None else f"  warning: {self.warning}"
        return f"step {self.step}/{self.steps}  loss {self.loss:.4f}{preference}  {rate}{warning}"


def _mean(curve: Sequence[Mapping[str, Any]], name: str) -> float:
    # A log that an earlier version of the program began has steps without the present names.
    values = [facts[name] for facts in curve if name in facts]
    return float(sum(values) / len(values))


def _warning(recent: Sequence[Mapping[str, Any]], beta: float) -> str | None:
    """Warn of a worker's remark, or when both sides of the pairs are less probable than under the reference.

    The margin may grow all the same, but DPO then unlearns the judgments themselves.
    """
    if fallback := recent[-1].get("fallback"):
        return str(fallback)
    if len(recent) < _RECENT or "rewards/chosen" not in recent[-1]:
        return None
    chosen, rejected = (_mean(recent, f"rewards/{side}") / beta for side in ("chosen", "rejected"))
    if max(chosen, rejected) > -_FALLEN:
        return None
    return (
        f"log-probabilities of chosen ({chosen:+.1f} nats) and rejected ({rejected:+.1f}) both fall below the "
        "reference; lower the learning rate or raise dpo.nll_weight"
    )


class StepLog:
    """The curve of a training, a JSON object per step; a resumed training writes on from its checkpoint."""

    def __init__(self, file: Path, steps_done: int) -> None:
        kept = [line for line in read_log(file) if line["step"] <= steps_done]
        self.file = file
        write_atomically(file, "".join(f"{json.dumps(line)}\n" for line in kept).encode())

    def validations(self) -> dict[int, Mapping[str, Any]]:
        """Return what `validation.validate` measured, by steps done."""
        return read_validations(read_log(self.file))

    def write(self, facts: Mapping[str, Any]) -> None:
        """Add a step."""
        with self.file.open("a") as stream:
            stream.write(f"{json.dumps(facts)}\n")


def read_log(file: Path) -> list[dict[str, Any]]:
    """Read the steps of a log, without lines that cannot be read, such as a last one that was cut off."""
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [step for line in lines if line.endswith(b"\n") and (step := _read_step(line)) is not None]


def _read_step(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError):
        step = json.loads(line)
        if isinstance(step, dict) and isinstance(step.get("step"), int):
            return step
    return None


def read_validations(curve: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Return the facts of the steps after which the judge was validated, by steps done."""
    facts_of = {facts["step"]: {name: facts[name] for name in VALIDATION if name in facts} for facts in curve}
    return {step: facts for step, facts in facts_of.items() if facts}


@contextmanager
def follow_log(
    file: Path, steps: int, beta: float, on_progress: Callable[[Progress], None] | None, every: float = 3.0
) -> Iterator[None]:
    """Report a log's new steps every few seconds, and the last one at the end; `steps`, `beta` as for `Progress.of`."""
    if on_progress is None:
        yield
        return
    reported = len(read_log(file))

    def report() -> None:
        nonlocal reported
        curve = read_log(file)
        if curve and len(curve) != reported:
            reported = len(curve)
            on_progress(Progress.of(curve, steps, beta))

    try:
        with call_every(every, report):
            yield
    finally:
        report()
