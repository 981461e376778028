"""`carevl miniworld quality`: what the shipped models can and cannot do, measured on freshly drawn scenes.

Every figure is a share with a 95 % Wilson interval unless its name says otherwise.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from carevl.judging.prompts import Task, judge_prompt
from carevl.judging.verdicts import Verdict, read_verdict
from carevl.miniworld.items import Item, draw_items
from carevl.miniworld.models import CAPTION_PROMPT, expert_turn
from carevl.miniworld.questions import KINDS, caption
from carevl.models.engines.base import Generation, GenerationRequest
from carevl.models.engines.transformers import ImageTextGenerator

MAX_TOKENS = 80
SAMPLES = 8
Drawn = tuple[Image, Item]


@dataclass
class Figures:
    """Measured values by path (`judge`, `answers`, `count`), with intervals beside them."""

    values: dict[tuple[str, ...], float] = field(default_factory=dict)
    intervals: dict[tuple[str, ...], tuple[float, float]] = field(default_factory=dict)

    def put(self, *path: str, value: float) -> None:
        """Store a value."""
        self.values[path] = round(value, 4)

    def share(self, *path: str, hits: Iterable[bool]) -> None:
        """Store the share of true values, with its Wilson interval; NaN when there are none."""
        flags = list(hits)
        self.put(*path, value=sum(flags) / len(flags) if flags else math.nan)
        if flags:
            low, high = wilson(sum(flags), len(flags))
            self.intervals[path] = (round(low, 4), round(high, 4))


def nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return a mapping by path as a tree of dictionaries."""
    tree: dict[str, Any] = {}
    for (*branch, leaf), value in flat.items():
        node = tree
        for name in branch:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval for a share (Wilson 1927), 95 % by default."""
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def answers_right(item: Item, text: str) -> bool:
    """Tell whether an answer to the bare question is right: its conclusion, or all of it where there is none."""
    if item.question.answer in ("yes", "no") and item.question.evidence.endswith(f"so {item.question.answer}."):
        return text.strip().endswith(f"so {item.question.answer}.")
    return text.strip() == item.question.evidence


def calibration_error(probabilities: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 10) -> float:
    """Return the expected calibration error: mean |accuracy - confidence| over equal-width bins of confidence.

    Args:
        probabilities: float64 [n], given to the first of two responses.
        right: bool [n], whether the first is the better one.
    """
    confidence = np.maximum(probabilities, 1 - probabilities)
    correct = (probabilities > 0.5) == right
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[index == b].mean() - confidence[index == b].mean()) * (index == b).mean()
        for b in range(bins)
        if (index == b).any()
    ]
    return float(sum(gaps))


def _judge(
    generator: ImageTextGenerator,
    drawn: Sequence[Drawn],
    task: Task,
    orders: Sequence[list[int]],
    temperature: float = 0.0,
) -> list[tuple[Generation, Verdict]]:
    requests = [
        GenerationRequest(
            (image,), judge_prompt(task, item.question.text, [r.text for r in item.responses], order), seed=seed
        )
        for seed, ((image, item), order) in enumerate(zip(drawn, orders, strict=True))
    ]
    generations = generator.generate(requests, max_tokens=MAX_TOKENS, temperature=temperature)
    return [
        (generation, read_verdict(generation.text, task, len(order), generation.truncated).in_items(order))
        for generation, order in zip(generations, orders, strict=True)
    ]


def measure_captioner(figures: Figures, model: Path, drawn: Sequence[Drawn]) -> list[str]:
    """Caption every image; a caption is exact when it names every shape and colour, with counts, and nothing else."""
    requests = [GenerationRequest((image,), CAPTION_PROMPT) for image, _ in drawn]
    generations = ImageTextGenerator(model).generate(requests, max_tokens=MAX_TOKENS)
    captions = [generation.text for generation in generations]
    figures.share(
        "captioner",
        "exact",
        hits=(text == caption(item.scene) for text, (_, item) in zip(captions, drawn, strict=True)),
    )
    return captions


def measure_judge(figures: Figures, model: Path, drawn: Sequence[Drawn], n_sampled: int) -> None:
    """Measure answers, judgments in both orders, and repeated judgments at temperature 1."""
    generator = ImageTextGenerator(model)
    items = [item for _, item in drawn]
    answers = generator.generate(
        [GenerationRequest((image,), item.question.text) for image, item in drawn], max_tokens=MAX_TOKENS
    )
    right = [answers_right(item, answer.text) for item, answer in zip(items, answers, strict=True)]
    for kind in KINDS:
        figures.share(
            "judge",
            "answers",
            kind,
            hits=(ok for ok, item in zip(right, items, strict=True) if item.question.kind == kind),
        )

    best = [0 if item.responses[0].right else 1 for item in items]
    shown_first = _judge(generator, drawn, "pairwise", [[b, 1 - b] for b in best])
    shown_second = _judge(generator, drawn, "pairwise", [[1 - b, b] for b in best])
    first = [verdict.winner == b for (_, verdict), b in zip(shown_first, best, strict=True)]
    second = [verdict.winner == b for (_, verdict), b in zip(shown_second, best, strict=True)]
    figures.share("judge", "first_order_accuracy", hits=first)
    figures.share("judge", "second_order_accuracy", hits=second)
    figures.share("judge", "pairwise_accuracy", hits=first + second)
    figures.share("judge", "strict_accuracy", hits=(a and b for a, b in zip(first, second, strict=True)))
    both = zip(shown_first, shown_second, strict=True)
    figures.share(
        "judge", "order_consistency", hits=(a.winner is not None and a.winner == b.winner for (_, a), (_, b) in both)
    )
    for kind in KINDS:
        flags = [
            ok for side in (first, second) for ok, item in zip(side, items, strict=True) if item.question.kind == kind
        ]
        figures.share("judge", "pairwise_by_kind", kind, hits=flags)

    quarter = drawn[: len(drawn) // 4]
    judgments = shown_first + shown_second
    judgments += _judge(generator, quarter, "pointwise", [[0]] * len(quarter))
    judgments += _judge(generator, quarter, "ranking", [[1, 0]] * len(quarter))
    figures.share("judge", "parse_rate", hits=(verdict.status == "ok" for _, verdict in judgments))
    _measure_samples(figures, generator, drawn[:n_sampled])


def _measure_samples(figures: Figures, generator: ImageTextGenerator, drawn: Sequence[Drawn]) -> None:
    repeated = [pair for pair in drawn for _ in range(SAMPLES)]
    orders = [[k // (SAMPLES // 2) % 2, 1 - k // (SAMPLES // 2) % 2] for k in range(len(repeated))]
    judged = _judge(generator, repeated, "pairwise", orders, temperature=1.0)
    texts = [[generation.text for generation, _ in judged[i : i + SAMPLES]] for i in range(0, len(judged), SAMPLES)]
    figures.put("judge", "distinct_at_1.0", value=float(np.mean([len(set(group)) for group in texts])))
    figures.share("judge", "parse_rate_at_1.0", hits=(verdict.status == "ok" for _, verdict in judged))
    evidence: dict[bool, list[bool]] = {True: [], False: []}
    for (_, verdict), (_, item) in zip(judged, repeated, strict=True):
        if verdict.winner is not None:
            evidence[item.responses[verdict.winner].right].append(verdict.evidence == item.question.evidence)
    figures.share("judge", "evidence_right_given_verdict_right", hits=evidence[True])
    figures.share("judge", "evidence_right_given_verdict_wrong", hits=evidence[False])


def measure_expert(figures: Figures, name: str, model: Path, items: Sequence[Item], captions: Sequence[str]) -> None:
    """Measure accuracy over pairs, by whether a caption decides them and by kind; length slope; calibration error."""
    from carevl.models.reward_scorer import RewardScorer

    scorer = RewardScorer(model)
    conversations = [
        (expert_turn(text, item.question.text), response.text)
        for item, text in zip(items, captions, strict=True)
        for response in item.responses
    ]
    scores = np.array(scorer.score(conversations)).reshape(len(items), 2)
    margins = scores[:, 0] - scores[:, 1]
    first_right = np.array([item.responses[0].right for item in items])
    right = (margins > 0) == first_right
    decidable = np.array([item.decidable for item in items])
    figures.share("experts", name, "decidable", hits=right[decidable].tolist())
    figures.share("experts", name, "undecidable", hits=right[~decidable].tolist())
    for kind in KINDS:
        chosen = np.array([item.question.kind == kind for item in items])
        figures.share("experts", name, "by_kind", kind, hits=right[chosen].tolist())
    lengths = np.array([[math.log(len(response.text)) for response in item.responses] for item in items])
    figures.put(
        "experts", name, "length_slope", value=length_slope(margins, lengths[:, 0] - lengths[:, 1], first_right)
    )
    probabilities = 1 / (1 + np.exp(-margins))
    figures.put("experts", name, "ece", value=calibration_error(probabilities, first_right))
    figures.put("experts", name, "margin_spread", value=float(np.std(margins)))


def length_slope(margins: NDArray[np.float64], log_ratio: NDArray[np.float64], first_right: NDArray[np.bool_]) -> float:
    """Return how much a longer response gains with correctness held fixed.

    Ordinary least squares of margin / sd(margin) on log length ratio and the sign of the truth.

    Args:
        margins: float64 [n], score of the first response minus score of the second.
        log_ratio: float64 [n], log(characters of first / characters of second).
        first_right: bool [n].

    Returns:
        Standard deviations of margin per unit of log length ratio.
    """
    design = np.column_stack([log_ratio, np.where(first_right, 1.0, -1.0), np.ones_like(log_ratio)])
    coefficients, *_ = np.linalg.lstsq(design, margins / np.std(margins), rcond=None)
    return float(coefficients[0])


def measure(
    weights: Path, *, seed: int = 11, n_items: int = 800, n_sampled: int = 120, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure every figure of the quality table.

    Args:
        weights: directory with `captioner`, `judge` and `expert-*`.
        seed: which scenes of the test pool are drawn.
        n_items: pairs to judge, one image each.
        n_sampled: how many of them are judged SAMPLES times at temperature 1.
    """
    if not (weights / "judge").is_dir():
        raise FileNotFoundError(f"{weights} holds no models: expected captioner, judge and expert-* in it")
    started, figures = time.monotonic(), Figures()
    drawn = [(image, items[0]) for image, items in itertools.islice(draw_items("test", "quality", seed), n_items)]
    items = [item for _, item in drawn]

    def done(what: str) -> None:
        log(f"{what} measured, {time.monotonic() - started:.0f} s")

    captions = measure_captioner(figures, weights / "captioner", drawn)
    done("captioner")
    for directory in sorted(weights.glob("expert-*")):
        measure_expert(figures, directory.name.removeprefix("expert-"), directory, items, captions)
        done(directory.name)
    measure_judge(figures, weights / "judge", drawn, n_sampled)
    done("judge")
    return {
        **nested(figures.values),
        "intervals": nested(figures.intervals),
        "settings": {"seed": seed, "items": n_items, "sampled": n_sampled},
        "seconds": round(time.monotonic() - started, 1),
    }


def rows(figures: dict[str, Any], *branch: str) -> Iterator[tuple[str, str]]:
    """Yield (name, value with interval) of every figure below a branch of what `measure` returned."""
    node, intervals = figures, figures["intervals"]
    for name in branch:
        node, intervals = node[name], intervals.get(name, {})
    for name, value in node.items():
        if isinstance(value, dict):
            for below, text in rows(figures, *branch, name):
                yield f"{name}.{below}", text
        else:
            interval = intervals.get(name)
            yield name, f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def table(figures: dict[str, Any]) -> str:
    """Return the figures as an aligned text table, one per line."""
    lines = [
        f"{part}.{name:42s} {text}" for part in ("captioner", "experts", "judge") for name, text in rows(figures, part)
    ]
    return "\n".join([*lines, f"measured in {figures['seconds']:.0f} s"])
