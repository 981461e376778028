"""How the small vision-language models are taught: a course in stages, each of which can be resumed."""

from __future__ import annotations

import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from carevl.miniworld import batches, vlm
from carevl.miniworld.fit import Fit
from carevl.miniworld.models import make_processor, make_tokenizer, make_vlm
from carevl.models.judge_files import quiet_transformers

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.miniworld.lessons import Turn

VLM_TOKENS = 4800
"""Tokens of a batch, padding included."""


@dataclass(frozen=True)
class Stage:
    """One stage of a vision-language model's schooling; `after` is the stage it starts from."""

    name: str
    after: str | None
    mix: dict[str, float]
    chunks: int
    rate: float
    last_rate: float


class Course(ABC):
    """What vision-language models are taught, the drawn world or pictures of another kind.

    Another process draws the lessons, so that a course has to be picklable.
    """

    stages: Sequence[Stage]
    compiled: ClassVar[bool] = True
    """Whether the step is compiled, which takes minutes and pays where a training takes many."""

    @abstractmethod
    def texts(self) -> Iterable[str]:
        """Return texts in the proportions in which the models meet them: the tokenizer is made of them."""

    @abstractmethod
    def draw(self, lesson: str, rng: random.Random) -> tuple[Image, Sequence[Turn]]:
        """Draw a lesson of the kind that a stage's mix names: an image, and the turns spoken about it."""


def teach(course: Course, work: Path, log: Callable[[str], None], only: Collection[str] = ()) -> None:
    """Run every stage of a course that is not finished under `work`, or only the named ones.

    Args:
        log: takes lines of progress.

    Raises:
        FileNotFoundError: a stage's predecessor is not finished.
    """
    import torch

    vlm.keep_memory()
    tokenizer_file(work).parent.parent.mkdir(parents=True, exist_ok=True)
    if not tokenizer_file(work).exists():
        make_tokenizer(course.texts()).save_pretrained(tokenizer_file(work).parent)
    with quiet_transformers():
        for stage in course.stages:
            if not only or stage.name in only:
                torch.manual_seed(1)
                _run_stage(course, stage, work, log)


def tokenizer_file(work: Path) -> Path:
    """Return the file of the tokenizer that all models of `work` have."""
    return work / "tokenizer" / "tokenizer.json"


def load_tokenizer(work: Path) -> Any:
    """Return that tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_file(work).parent)


def is_finished(directory: Path) -> bool:
    """Tell whether the model of a directory is whole."""
    return (directory / "done.json").exists()


def finish(directory: Path, model: Any, extras: Any, **facts: object) -> None:
    """Save a model with its tokenizer or processor, drop its checkpoint, and write `facts` last."""
    model.save_pretrained(directory)
    extras.save_pretrained(directory)
    (directory / "state.pt").unlink(missing_ok=True)
    (directory / "done.json").write_text(json.dumps(facts))


def _run_stage(course: Course, stage: Stage, work: Path, log: Callable[[str], None]) -> None:
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    directory = work / stage.name
    if is_finished(directory):
        return
    tokenizer = load_tokenizer(work)
    if stage.after is None:
        model = make_vlm(tokenizer)
    elif is_finished(work / stage.after):
        model = Qwen2VLForConditionalGeneration.from_pretrained(work / stage.after)
    else:
        raise FileNotFoundError(f"stage {stage.name} starts from stage {stage.after}, which is not finished")
    directory.mkdir(exist_ok=True)
    cos, sin = vlm.vision_rotation(model)

    def step(**batch: torch.Tensor) -> torch.Tensor:
        return vlm.taught_logits(model, cos=cos, sin=sin, **batch)

    logits = torch.compile(step, dynamic=True) if course.compiled else step

    def loss(batch: batches.Batch) -> tuple[torch.Tensor, float]:
        inputs = vlm.tensors(batch)
        targets, verdicts = inputs.pop("targets"), inputs.pop("verdicts")
        guesses = logits(**inputs)
        losses = torch.nn.functional.cross_entropy(guesses, targets, reduction="none")
        right = (guesses.detach().argmax(-1) == targets).float()
        if not verdicts.any():
            return losses.mean(), right.mean().item()
        # A verdict is one token in thirty; counted like the others it would take many times as long to learn.
        rest = losses[~verdicts].sum() / max(1, int((~verdicts).sum()))
        return rest + losses[verdicts].mean(), right[verdicts].mean().item()

    started = time.time()
    fit = Fit(
        stage.name,
        model,
        loss,
        directory / "state.pt",
        rate=stage.rate,
        last_rate=stage.last_rate,
        chunks=stage.chunks,
        log=log,
    )
    arguments = (str(tokenizer_file(work)), course, stage.mix, VLM_TOKENS, stage.name)
    fit.run(batches.ahead(batches.lesson_chunks, arguments, fit.first_chunk))
    finish(directory, model, make_processor(tokenizer), seconds=time.time() - started, chunks=stage.chunks)
    log(f"{stage.name}: finished")
