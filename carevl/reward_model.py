"""`RewardModel`: a trained judge in Python.

```python
from carevl import RewardModel

judge = RewardModel("runs/mini/judge")
verdict = judge.judge("photo.jpg", "How many dogs are there?", ("Two dogs.", "Three dogs."))
verdict.winner, verdict.probability, verdict.evidence  # 1, 0.93, "The image shows three dogs."
judge.score("photo.jpg", "How many dogs are there?", "Three dogs.")  # 4.8, of 1 to 5
judge.rank("photo.jpg", "How many dogs are there?", ("Two.", "Three.", "None.")).order  # [1, 0, 2]
```

In place of one image there may be a list of several, or None; in place of a question a list of turns, with the places
of images in them (`carevl.judging.turns.Turn`). `judge_all`, `score_all` and `rank_all` take lists, one element per
case, and run them in batches. vLLM gives a judge's memory back when it is closed: call `close()`, or use it as
`with RewardModel(…, engine="vllm") as judge`.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from carevl.data.images import ImageLimits, bound_pixels, decode_rgb, to_rgb
from carevl.data.rows import RowError
from carevl.errors import UserError
from carevl.judging.prompts import VERDICT_PREFIX, Task, judge_turn
from carevl.judging.turns import Turn
from carevl.judging.verdict_tokens import (
    CHOICES,
    VERDICT_TEXTS,
    forced_probabilities,
    mean_rating,
    verdict_probabilities,
    verdict_texts,
)
from carevl.judging.verdicts import Reading, Status, read_verdict
from carevl.models.adapter_files import check_adapter
from carevl.models.engines import find_nan, generator
from carevl.models.engines.base import Generation, GenerationRequest, Generator
from carevl.models.judge_spec import JudgeSpec, asking_of
from carevl.models.locate import prepare_models
from carevl.models.row_errors import NotFiniteError, SomeRowsError, first_line, is_lost, is_out_of_memory
from carevl.settings.schemes import split_scheme
from carevl.stats.bootstrap import FloatArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.settings.models import Judge

    Picture = Image | bytes | str | Path
    Pictures = Picture | Sequence[Picture] | None
    Question = str | Sequence[Turn]


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgment:
    """Which of two responses is better.

    `winner` is 0 or 1; `probability`, that it is the better one, is the mean over both orders of showing them;
    `consistent` tells whether both orders gave the same winner; `evidence` is the judge's sentence for the winner;
    `texts` are what it wrote in the two orders.

    `forced` tells whether a text was cut before its verdict, which was then asked for after the evidence.

    `status` is `ok` where both orders have a verdict. Else it says of one that has none why: `none` (a refusal, a
    tie, words that state no verdict), `both` (verdicts that contradict each other) or `truncated`; then `winner` and
    `probability` are None. With status `ok`, `probability` is None where the tokenizer does not let it be read, and
    `winner` then where the orders disagree as well.
    """

    winner: int | None
    probability: float | None
    consistent: bool
    evidence: str
    texts: tuple[str, str]
    status: Status = "ok"
    forced: bool = False


@dataclass(frozen=True)
class Ranking:
    """Responses in order.

    `order` has their indices, best first; `win_probabilities` has for each response its mean probability of winning
    against another one, None where no verdict about it has one: it then stands last. `status` is `ok` where every
    duel has a verdict, else that of one that has none.
    """

    order: list[int]
    win_probabilities: list[float | None]
    status: Status = "ok"


class RewardModel:
    """A vision-language judge.

    Args:
        path: a judge's directory or hub id; `miniworld:judge` is the shipped base judge.
        engine: `transformers`, or `vllm` for throughput.
        max_tokens: longest judgment.
        force_verdicts: whether a judgment that was cut before its verdict is asked for it once more, after the evidence
            that it has. One that ended without a verdict has said its last word, be it a refusal.
        settings: further fields of the setting `judge`, such as `revision`, `dtype` or `max_model_len`.

    Raises:
        UserError: the directory holds no model, or the hub does not give it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        engine: str = "transformers",
        max_tokens: int = 256,
        force_verdicts: bool = True,
        **settings: Any,
    ) -> None:
        from carevl.settings.models import Judge

        judge: Judge = Judge.model_validate({"path": str(path), "engine": engine, "max_tokens": max_tokens, **settings})
        if split_scheme(judge.path) is None and len(Path(judge.path).parts) > 2 and not Path(path).is_dir():
            raise UserError(f"{path}: there is no such directory; a run's judge lies in RUN/judge")
        if judge.scoring is not None:
            raise UserError("scoring is for judges of `carevl evaluate` and for experts; a RewardModel reads judgments")
        prepare_models({"judge": judge}, _log.info)
        check_adapter(judge)
        self.path, self.max_tokens, self.force_verdicts = judge.path, max_tokens, force_verdicts
        self.resize_pixels, self.asking = JudgeSpec.of(judge).resize_pixels, asking_of(judge)
        self.engine: Generator = generator(judge)

    def close(self) -> None:
        """End the engine, and give its memory back; whoever asks afterwards gets a `UserError`."""
        getattr(self.engine, "close", lambda: None)()
        self.engine = _Closed()

    def __enter__(self) -> Self:
        """Return the judge."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()

    def judge(self, image: Pictures, question: Question, responses: Sequence[str]) -> Judgment:
        """Decide which of two responses to a question about images is better; errors as for `judge_all`."""
        return self.judge_all([image], [question], [responses])[0]

    def judge_all(
        self, images: Sequence[Pictures], questions: Sequence[Question], responses: Sequence[Sequence[str]]
    ) -> list[Judgment]:
        """Apply `judge` to many cases, in batches.

        Raises:
            UserError: an image cannot be read, there are not two responses, the engine refuses a request, or the judge
                computes what is not a number.
        """
        for shown in responses:
            if len(shown) != 2:
                raise UserError(f"judge compares two responses, not {len(shown)}; rank takes any number")
        requests = [
            self._request("pairwise", pictures, question, shown, order)
            for pictures, question, shown in zip(map(self._pictures, images), questions, responses, strict=True)
            for order in ((0, 1), (1, 0))
        ]
        wording = self.asking.verdict
        texts = self._ask(requests, max_tokens=self.max_tokens, logprob_texts=verdict_texts(wording))
        readings = [read_verdict(each.text, "pairwise", 2, each.truncated, wording) for each in texts]
        verdicts = [
            verdict_probabilities(each.logprobs, each.text, reading.span)
            for each, reading in zip(texts, readings, strict=True)
        ]
        cut = {i for i, reading in enumerate(readings) if reading.status == "truncated" and self.force_verdicts}
        unclear = [i for i, reading in enumerate(readings) if reading.status == "ok" and verdicts[i] is None]
        asked = [*unclear, *sorted(cut)]
        forced = self._force_verdicts("pairwise", [(requests[i], readings[i]) for i in asked], 2)
        for i, probabilities in zip(asked, forced, strict=True):
            number = None if probabilities is None else 1 + int(probabilities.argmax())
            if i in cut and number is not None:
                readings[i] = replace(readings[i], status="ok", value=number)
            if number is not None and number == readings[i].value:
                verdicts[i] = probabilities
        judgments = []
        for i in range(0, len(texts), 2):
            judgment = _judgment((texts[i].text, texts[i + 1].text), readings[i : i + 2], verdicts[i : i + 2])
            judgments.append(replace(judgment, forced=judgment.status == "ok" and not cut.isdisjoint((i, i + 1))))
        return judgments

    def score(self, image: Pictures, question: Question, response: str) -> float:
        """Rate a response from 1 (bad) to 5 (right): return the mean rating under the judge's probabilities.

        It is nan where the judge gives no rating, as in a refusal.
        """
        return self.score_all([image], [question], [response])[0]

    def score_all(
        self, images: Sequence[Pictures], questions: Sequence[Question], responses: Sequence[str]
    ) -> list[float]:
        """Apply `score` to many cases, in batches."""
        requests = [
            self._request("pointwise", pictures, question, [shown])
            for pictures, question, shown in zip(map(self._pictures, images), questions, responses, strict=True)
        ]
        texts = self._ask(requests, max_tokens=self.max_tokens)
        readings = [read_verdict(each.text, "pointwise", 1, each.truncated, self.asking.verdict) for each in texts]
        known = ("ok", "truncated") if self.force_verdicts else ("ok",)
        rated = [i for i, reading in enumerate(readings) if reading.status in known]
        scores = [math.nan] * len(texts)
        forced = self._force_verdicts("pointwise", [(requests[i], readings[i]) for i in rated], CHOICES)
        for i, probabilities in zip(rated, forced, strict=True):
            if probabilities is not None:
                scores[i] = mean_rating(probabilities)
        return scores

    def rank(self, image: Pictures, question: Question, responses: Sequence[str]) -> Ranking:
        """Order responses by the mean probability of winning against the others."""
        return self.rank_all([image], [question], [responses])[0]

    def rank_all(
        self, images: Sequence[Pictures], questions: Sequence[Question], responses: Sequence[Sequence[str]]
    ) -> list[Ranking]:
        """Apply `rank` to many cases, in batches."""
        duels = [
            (n, i, j) for n, shown in enumerate(responses) for i, j in itertools.combinations(range(len(shown)), 2)
        ]
        judged = self.judge_all(
            [images[n] for n, _, _ in duels],
            [questions[n] for n, _, _ in duels],
            [(responses[n][i], responses[n][j]) for n, i, j in duels],
        )
        wins: list[list[list[float]]] = [[[] for _ in shown] for shown in responses]
        statuses: list[list[Status]] = [[] for _ in responses]
        for (n, i, j), judgment in zip(duels, judged, strict=True):
            statuses[n].append(judgment.status)
            if judgment.probability is not None:
                first = judgment.probability if judgment.winner == 0 else 1.0 - judgment.probability
                wins[n][i].append(first)
                wins[n][j].append(1.0 - first)
        return [_ranking(*each) for each in zip(wins, statuses, strict=True)]

    def _ask(self, requests: Sequence[GenerationRequest], **arguments: Any) -> list[Generation]:
        """Return what the engine writes.

        Raises:
            UserError: it refuses a request, such as one over `max_model_len`, computes what is not a number, or fails.
        """
        try:
            texts = self.engine.generate(requests, **arguments)
        except SomeRowsError as partial:
            [place, failure] = next(iter(partial.failures.items()))
            raise UserError(f"{self.path}: request {place} of {len(requests)} failed: {failure.message}") from None
        except NotFiniteError as error:
            raise UserError(f"{self.path}: {error}") from None
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error) or is_lost(error):
                raise
            raise UserError(
                f"{self.path} fails at what it is asked ({first_line(error)}); `carevl check {self.path}` tells more"
            ) from error
        if broken := next(filter(None, map(find_nan, texts)), None):
            raise UserError(f"{self.path}: {broken.message}")
        return texts

    def _request(
        self,
        task: Task,
        pictures: tuple[Image, ...],
        question: Question,
        responses: Sequence[str],
        order: Sequence[int] | None = None,
    ) -> GenerationRequest:
        """Return what is asked about a case.

        Raises:
            UserError: its turns have places for another number of images, or the last is not the user's.
        """
        asked = [Turn("user", question, (0,) * len(pictures))] if isinstance(question, str) else question
        if not asked or asked[-1].role != "user":
            raise UserError("a conversation ends with a turn of the user, to which the responses reply")
        n_places = sum(len(turn.places) for turn in asked)
        if n_places != len(pictures):
            raise UserError(f"there are {len(pictures)} images, and the turns have places for {n_places}")
        prompt = judge_turn(task, asked, responses, order, self.asking.template(task))
        return GenerationRequest(pictures, prompt.text, places=prompt.places)

    def _pictures(self, images: Pictures) -> tuple[Image, ...]:
        """Return what is shown; errors as for `_picture`."""
        if images is None:
            return ()
        several = images if isinstance(images, list | tuple) else [images]
        return tuple(map(self._picture, several))

    def _picture(self, image: Picture) -> Image:
        """Return an image from a file, its bytes, or a picture that is open already, as large as the judge sees it.

        Raises:
            UserError: it cannot be read.
        """
        try:
            if not isinstance(image, bytes | str | Path):
                return bound_pixels(to_rgb(image), self.resize_pixels)
            data = image if isinstance(image, bytes) else Path(image).read_bytes()
            return decode_rgb(data, ImageLimits(), self.resize_pixels)
        except (OSError, RowError) as error:
            name = str(image) if isinstance(image, str | Path) else "the image"
            raise UserError(f"cannot read {name}: {error}") from None

    def _force_verdicts(
        self, task: Task, written: Sequence[tuple[GenerationRequest, Reading]], choices: int
    ) -> list[FloatArray | None]:
        """Return the probabilities of the choices where the verdict has to follow the evidence of each judgment."""
        requests = [
            replace(request, response_prefix=f"{reading.evidence}\n{VERDICT_PREFIX[task]}".lstrip("\n"))
            for request, reading in written
        ]
        texts = self._ask(requests, max_tokens=2, logprob_texts=VERDICT_TEXTS) if requests else []
        return [forced_probabilities(generation.logprobs, choices) for generation in texts]


class _Closed:
    """In place of the engine of a judge that was closed."""

    def generate(self, requests: Sequence[GenerationRequest], **arguments: Any) -> list[Generation]:
        raise UserError("this RewardModel was closed; load it again")


def _judgment(
    texts: tuple[str, str], readings: Sequence[Reading], probabilities: Sequence[FloatArray | None]
) -> Judgment:
    """Return the judgment of the order (0, 1) and of (1, 0)."""
    failed = [reading.status for reading in readings if reading.status != "ok"]
    if failed:
        return Judgment(None, None, False, readings[0].evidence, texts, failed[0])
    winners = [reading.in_items(order).winner for reading, order in zip(readings, ((0, 1), (1, 0)), strict=True)]
    consistent = winners[0] == winners[1]
    first, second = probabilities
    if first is None or second is None:
        return Judgment(winners[0] if consistent else None, None, consistent, readings[0].evidence, texts)
    mean = float(first[0] + second[1]) / 2
    winner = 0 if mean >= 0.5 else 1
    agreeing = [reading for reading, each in zip(readings, winners, strict=True) if each == winner]
    evidence = [*agreeing, *readings][0].evidence
    return Judgment(winner, mean if winner == 0 else 1 - mean, consistent, evidence, texts)


def _ranking(wins: Sequence[Sequence[float]], statuses: Sequence[Status]) -> Ranking:
    """Return the ranking by the probabilities of every response's wins."""
    means = [sum(each) / len(each) if each else None for each in wins]
    order = sorted(range(len(means)), key=lambda i: -1.0 if (mean := means[i]) is None else mean, reverse=True)
    return Ranking(order, means, next((status for status in statuses if status != "ok"), "ok"))
