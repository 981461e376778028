"""`RewardModel`: a trained judge in Python.

```python
from carevl import RewardModel

judge = RewardModel("runs/mini/judge")
verdict = judge.judge("photo.jpg", "How many dogs are there?", ("Two dogs.", "Three dogs."))
verdict.winner, verdict.probability, verdict.evidence  # 1, 0.93, "The image shows three dogs."
judge.score("photo.jpg", "How many dogs are there?", "Three dogs.")  # 4.8, of 1 to 5
judge.rank("photo.jpg", "How many dogs are there?", ("Two.", "Three.", "None."))  # [1, 0, 2]
```

`judge_all`, `score_all` and `rank_all` take lists, one element per case, and run them in batches.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from carevl.data.images import ImageLimits, bound_pixels, decode_rgb
from carevl.data.rows import RowError
from carevl.errors import UserError
from carevl.judging.prompts import VERDICT_PREFIX, Task, judge_prompt, parse_judgment
from carevl.judging.verdict_tokens import CHOICES, VERDICT_TEXTS, forced_probabilities, verdict_probabilities
from carevl.models.engines import generator
from carevl.models.engines.base import Generation, GenerationRequest
from carevl.models.judge_spec import JudgeSpec
from carevl.models.locate import prepare_models
from carevl.settings.schemes import split_scheme
from carevl.stats.bootstrap import FloatArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.settings.models import Judge

    Picture = Image | bytes | str | Path


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgment:
    """Which of two responses is better.

    `winner` is 0 or 1; `probability`, that it is the better one, is the mean over both orders of showing them;
    `consistent` tells whether both orders gave the same winner; `evidence` is the judge's sentence for the winner;
    `texts` are what it wrote in the two orders.
    """

    winner: int
    probability: float
    consistent: bool
    evidence: str
    texts: tuple[str, str]


class RewardModel:
    """A vision-language judge.

    Args:
        path: a judge's directory or hub id; `miniworld:judge` is the shipped base judge.
        engine: `transformers`, or `vllm` for throughput.
        max_tokens: longest judgment.
        settings: further fields of the setting `judge`, such as `revision`, `dtype` or `max_model_len`.

    Raises:
        UserError: the directory holds no model, or the hub does not give it.
    """

    def __init__(
        self, path: str | Path, *, engine: str = "transformers", max_tokens: int = 256, **settings: Any
    ) -> None:
        from carevl.settings.models import Judge

        judge: Judge = Judge.model_validate({"path": str(path), "engine": engine, "max_tokens": max_tokens, **settings})
        if split_scheme(judge.path) is None and len(Path(judge.path).parts) > 2 and not Path(path).is_dir():
            raise UserError(f"{path}: there is no such directory; a run's judge lies in RUN/judge")
        prepare_models({"judge": judge}, _log.info)
        self.max_tokens = max_tokens
        self.resize_pixels = JudgeSpec.of(judge).resize_pixels
        self.engine = generator(judge)

    def judge(self, image: Picture, question: str, responses: Sequence[str]) -> Judgment:
        """Decide which of two responses to a question about an image is better; errors as for `judge_all`."""
        return self.judge_all([image], [question], [responses])[0]

    def judge_all(
        self, images: Sequence[Picture], questions: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> list[Judgment]:
        """Apply `judge` to many cases, in batches.

        Raises:
            UserError: an image cannot be read, or there are not two responses.
        """
        for shown in responses:
            if len(shown) != 2:
                raise UserError(f"judge compares two responses, not {len(shown)}; rank takes any number")
        requests = [
            GenerationRequest(picture, judge_prompt("pairwise", question, shown, order))
            for picture, question, shown in zip(map(self._picture, images), questions, responses, strict=True)
            for order in ((0, 1), (1, 0))
        ]
        texts = self.engine.generate(requests, max_tokens=self.max_tokens, logprob_texts=VERDICT_TEXTS)
        written = [verdict_probabilities(generation.logprobs, generation.text) for generation in texts]
        unclear = [i for i, probabilities in enumerate(written) if probabilities is None]
        forced = iter(self._force_verdicts("pairwise", [(requests[i], texts[i]) for i in unclear], 2))
        verdicts = [next(forced) if probabilities is None else probabilities for probabilities in written]
        return [
            _judgment((texts[i].text, texts[i + 1].text), float(verdicts[i][0]), float(verdicts[i + 1][1]))
            for i in range(0, len(texts), 2)
        ]

    def score(self, image: Picture, question: str, response: str) -> float:
        """Rate a response from 1 (bad) to 5 (right): return the mean rating under the judge's probabilities."""
        return self.score_all([image], [question], [response])[0]

    def score_all(self, images: Sequence[Picture], questions: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Apply `score` to many cases, in batches."""
        requests = [
            GenerationRequest(picture, judge_prompt("pointwise", question, [shown]))
            for picture, question, shown in zip(map(self._picture, images), questions, responses, strict=True)
        ]
        texts = self.engine.generate(requests, max_tokens=self.max_tokens)
        verdicts = self._force_verdicts("pointwise", list(zip(requests, texts, strict=True)), CHOICES)
        return [float(probabilities @ np.arange(1, CHOICES + 1)) for probabilities in verdicts]

    def rank(self, image: Picture, question: str, responses: Sequence[str]) -> list[int]:
        """Return the indices of the responses, best first, by the mean probability of winning against the others."""
        return self.rank_all([image], [question], [responses])[0]

    def rank_all(
        self, images: Sequence[Picture], questions: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> list[list[int]]:
        """Apply `rank` to many cases, in batches."""
        duels = [
            (n, i, j) for n, shown in enumerate(responses) for i, j in itertools.combinations(range(len(shown)), 2)
        ]
        judged = self.judge_all(
            [images[n] for n, _, _ in duels],
            [questions[n] for n, _, _ in duels],
            [(responses[n][i], responses[n][j]) for n, i, j in duels],
        )
        wins = [np.zeros(len(shown)) for shown in responses]
        for (n, i, j), judgment in zip(duels, judged, strict=True):
            first = judgment.probability if judgment.winner == 0 else 1.0 - judgment.probability
            wins[n] += np.bincount([i, j], [first, 1.0 - first], len(responses[n]))
        return [[int(i) for i in np.argsort(-won, kind="stable")] for won in wins]

    def _picture(self, image: Picture) -> Image:
        """Return an image from a file, its bytes, or a picture that is open already, as large as the judge sees it.

        Raises:
            UserError: it cannot be read.
        """
        if not isinstance(image, bytes | str | Path):
            return bound_pixels(image.convert("RGB"), self.resize_pixels)
        try:
            data = image if isinstance(image, bytes) else Path(image).read_bytes()
            return decode_rgb(data, ImageLimits(), self.resize_pixels)
        except (OSError, RowError) as error:
            name = "the image" if isinstance(image, bytes) else str(image)
            raise UserError(f"cannot read {name}: {error}") from None

    def _force_verdicts(
        self, task: Task, written: Sequence[tuple[GenerationRequest, Generation]], choices: int
    ) -> list[FloatArray]:
        """Return the probabilities of the choices where the verdict has to follow the evidence of each text."""
        evidences = [text.text.split("Overall Judgment:")[0].rstrip() for _, text in written]
        requests = [
            GenerationRequest(
                request.image,
                request.prompt,
                f"{evidence}\n{VERDICT_PREFIX[task]}" if evidence else VERDICT_PREFIX[task],
            )
            for (request, _), evidence in zip(written, evidences, strict=True)
        ]
        texts = self.engine.generate(requests, max_tokens=2, logprob_texts=VERDICT_TEXTS) if requests else []
        even = np.full(choices, 1.0 / choices)
        forced = [forced_probabilities(generation.logprobs, choices) for generation in texts]
        return [even if probabilities is None else probabilities for probabilities in forced]


def _judgment(texts: tuple[str, str], *first_better: float) -> Judgment:
    """Return the judgment of two orders, each with its text and its probability that response 0 is better."""
    mean = sum(first_better) / 2
    winner = 0 if mean >= 0.5 else 1
    agreeing = [text for text, first in zip(texts, first_better, strict=True) if (first < 0.5) == bool(winner)]
    evidence = parse_judgment([*agreeing, *texts][0], "pairwise", (0, 1)).evidence
    consistent = len(agreeing) == 2
    return Judgment(winner, mean if winner == 0 else 1 - mean, consistent, evidence, texts)
