"""What a person watches while a judge is trained: the log of steps, and a summary of its last ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carevl.store.table import write_atomically

LOOKS = ("held_out", "dev_accuracy")
_RECENT = 10
_FALLEN = 1.0


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
    def of(cls, curve: Sequence[Mapping[str, Any]], steps: int) -> Progress:
        """The summary of a log that has at least one step.

        Args:
            steps: steps of the whole training.
        """
        recent = curve[-_RECENT:]
        seconds = sum(sum(facts["seconds"].values()) for facts in recent)
        step = int(curve[-1]["step"])
        return cls(
            step=step,
            steps=steps,
            loss=_mean(recent, "loss"),
            accuracy=_mean(recent, "accuracy") if "accuracy" in recent[-1] else None,
            margin=_mean(recent, "margin") if "margin" in recent[-1] else None,
            tokens_per_second=sum(facts["tokens"] for facts in recent) / max(seconds, 1e-9),
            seconds_left=seconds / len(recent) * (steps - step),
            warning=_warning(recent),
        )

    def line(self) -> str:
        """One line for a terminal."""
        preference = "" if self.accuracy is None else f"  accuracy {self.accuracy:.2f}  margin {self.margin:.3f}"
        rate = f"{self.tokens_per_second:.0f} tokens/s  {self.seconds_left:.0f} s left"
        warning = "" if self.warning is None else f"  warning: {self.warning}"
        return f"step {self.step}/{self.steps}  loss {self.loss:.4f}{preference}  {rate}{warning}"


def _mean(curve: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(facts[name] for facts in curve) / len(curve))


def _warning(recent: Sequence[Mapping[str, Any]]) -> str | None:
    """Both sides of the pairs less probable than under the reference: DPO then unlearns the judgments themselves."""
    if len(recent) < _RECENT or "chosen_shift" not in recent[-1]:
        return None
    chosen, rejected = _mean(recent, "chosen_shift"), _mean(recent, "rejected_shift")
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

    def looks(self) -> dict[int, Mapping[str, Any]]:
        """What `looks.look` found, by steps done."""
        curve = [
            (facts["step"], {name: facts[name] for name in LOOKS if name in facts}) for facts in read_log(self.file)
        ]
        return {step: found for step, found in curve if found}

    def write(self, facts: Mapping[str, Any]) -> None:
        """Adds a step."""
        with self.file.open("a") as stream:
            stream.write(f"{json.dumps(facts)}\n")


def read_log(file: Path) -> list[dict[str, Any]]:
    """The steps of a log, without a last line that was cut off."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@contextmanager
def watched(file: Path, steps: int, say: Callable[[Progress], None] | None, every: float = 3.0) -> Iterator[None]:
    """Tells `say` of a log's new steps every few seconds, and of the last one at the end."""
    if say is None:
        yield
        return
    over, told = threading.Event(), len(read_log(file))

    def tell() -> None:
        nonlocal told
        curve = read_log(file)
        if curve and len(curve) != told:
            told = len(curve)
            say(Progress.of(curve, steps))

    def watch() -> None:
        while not over.wait(every):
            tell()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell()
