"""The judge of a run as an ordinary model directory: weights, processor, card, and one adapter for both phases."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from carevl.audit.injection import format_injection
from carevl.models.adapter_files import read_base, write_base
from carevl.models.judge_spec import JudgeSpec
from carevl.store.damage import encode_json, find_json_problem, read_json
from carevl.store.published import INJECTION, MARKER, mark, published_version
from carevl.store.table import write_atomically
from carevl.training.adapters import ROUNDING, Adapter, Rounding, compose
from carevl.training.trainable import TRAINED, TrainedParts

_CARD = "README.md"
_SECTION = "\n## What lines at the end of a response do\n"
_PHASE1 = "imitation of its own judgments where text reward models are sure of the label (phase 1)"
_PHASE2 = f"{_PHASE1}, then DPO on its judgments of the rest (phase 2)"
_MEASURED = "Measured on the run's development data unless the table says otherwise."


def publish(
    phases: Sequence[Path],
    base: str,
    target: Path,
    version: str,
    results: Sequence[str],
    *,
    method: str = _PHASE2,
    measured: str = _MEASURED,
) -> None:
    """Write `target`: the last phase's merged judge, `adapter/` relative to `base`, and a card.

    The directory appears whole. One that holds the same version, undamaged, keeps its weights and gets a new card.

    Args:
        phases: the training directories, in order, those of all rounds; each has `judge/` and, with LoRA, `adapter/`.
        base: the model that phase 1 began with, as the adapter names it.
        version: of the last phase, as `Run.version` gives it.
        results: lines of the table of results, for the card.
        method: what the card says of the training, as the end of a sentence.
        measured: what it says of where the results are from, in sentences.
    """
    if published_version(target) != version:
        unfinished = target.with_name(f".{target.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(phases[-1] / "judge", unfinished)
        if all((phase / "adapter").is_dir() for phase in phases):
            _write_adapter([phase / "adapter" for phase in phases], base, unfinished / "adapter")
            JudgeSpec.read(unfinished).write(unfinished / "adapter")
        mark(unfinished, version, base)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.replace(target)
    notes = [f"Phase {n} {parts.line()}" for n, parts in _trained_parts(phases)]
    if (rounding := Rounding.read(phases[-1] / ROUNDING)) is not None:
        notes.append(_capitalised(rounding.line()))
    (target / _CARD).write_text(_card(base, results, notes, method, measured) + _injection(target), encoding="utf-8")


def method_of(rounds: int) -> str:
    """Return what a card says of the training, as the end of a sentence.

    Args:
        rounds: of phase 2.
    """
    if not rounds:
        return f"{_PHASE1}; phase 2 was off, as no label could guard it"
    repeated = f", in {rounds} rounds, each from the judge of the one before" if rounds > 1 else ""
    return f"{_PHASE2}{repeated}"


def record_injection(target: Path, report: Mapping[str, Any]) -> None:
    """Keep beside a published judge what `carevl audit --judge` measured of it, and say it in the card; else nothing.

    It goes with the weights when another judge is published in their place.
    """
    if not (target / MARKER).is_file():
        return
    write_atomically(target / INJECTION, encode_json(report))
    card = (target / _CARD).read_text(encoding="utf-8").partition(_SECTION)[0]
    (target / _CARD).write_text(card + _injection(target), encoding="utf-8")


def _injection(target: Path) -> str:
    """Return the card's section on what was measured of lines at the end of a response; nothing where it was not.

    Nor where the file is damaged: `carevl audit --judge` measures it anew.
    """
    file = target / INJECTION
    if not file.is_file() or find_json_problem(file) is not None:
        return ""
    report = read_json(file, "")
    table = "\n".join(format_injection(report["lines"]))
    asked = (
        f"On {report['pairs']} pairs of the run, each response in turn with such a line: the share of verdicts that it "
        "changes, of those against this response the share that it turns to it, and the share of right ones (95 % "
        "intervals)."
    )
    return f"{_SECTION}\n{_wrap(asked)}\n\n```\n{table}\n```\n"


def _trained_parts(phases: Sequence[Path]) -> Iterator[tuple[int, TrainedParts]]:
    """Yield the number of every phase whose directory says what it trains, and that; rounds train what phase 2 does."""
    for number, phase in enumerate(phases[:2], 1):
        if (parts := TrainedParts.read(phase / TRAINED)) is not None:
            yield number, parts


def _write_adapter(directories: Sequence[Path], base: str, target: Path) -> None:
    """Write one adapter of the base that does what the phases' adapters do."""
    adapters = [Adapter.read(directory) for directory in directories]
    # One that began with the adapters before it, unmerged, is an adapter of the same judge as they are, and holds them.
    if len({adapter.config["base_model_name_or_path"] for adapter in adapters}) == 1:
        adapters = adapters[-1:]
    compose(adapters, base).write(target)
    if (fingerprint := read_base(directories[0])) is not None:
        write_base(target, fingerprint)


def _card(base: str, results: Sequence[str], notes: Sequence[str], method: str, measured: str) -> str:
    table = "\n".join(results)
    trained = _wrap(f"Trained by CAREVL from `{base}` on preference data without human labels: {method}.")
    paragraphs = "".join(f"\n{note}.\n" for note in notes)
    return f"""---
tags: [carevl, reward-model, vision-language]
base_model: {base}
---

# A vision-language judge

{trained}

It is asked with the prompts of `carevl.judging.prompts` and answers with one sentence of evidence and a verdict:

```python
from carevl import RewardModel

RewardModel("this directory").judge("photo.jpg", "How many dogs are there?", ("Two dogs.", "Three dogs."))
```

`adapter/`, if it is there, holds all that was learned as one LoRA adapter of the base, exactly as it was trained:
`RewardModel("{base}", adapter="this directory/adapter")`.
{paragraphs}
## What it reached

```
{table}
```

{_wrap(f"{measured} Answers of a judge are guesses: check them where they matter.")}
"""


def _wrap(text: str) -> str:
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
