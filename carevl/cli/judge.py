"""`carevl judge`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carevl.cli.options import AsJson

if TYPE_CHECKING:
    from carevl.reward_model import Judgment, RewardModel


def judge(
    model: Annotated[str, typer.Argument(metavar="DIR", help="A judge: RUN/judge, a model directory or a hub id.")],
    image: Annotated[Path, typer.Option(help="The image file.")],
    question: Annotated[str, typer.Option(help="What was asked about it.")],
    response: Annotated[list[str], typer.Option(help="An answer; one is rated, two are compared, more are ranked.")],
    engine: Annotated[str, typer.Option(help="{engines}.")] = "transformers",
    as_json: AsJson = False,
) -> None:
    """Ask a judge which response is better, with its probability and its evidence.

    Example: carevl judge runs/mini/judge --image photo.png --question "How many circles are there?"
    --response "Two." --response "Three."
    """
    from carevl.models.engines import ENGINES
    from carevl.reward_model import RewardModel

    _ = ENGINES[engine]  # refuses a name that nothing has before a model is loaded
    for line in judgment_lines(RewardModel(model, engine=engine), image, question, response, as_json=as_json):
        typer.echo(line)


def judgment_lines(
    judge: RewardModel, image: Path, question: str, responses: Sequence[str], *, as_json: bool
) -> Iterator[str]:
    """Return the judge's answer, line by line: one response is rated, two are compared, more are ranked."""
    if len(responses) == 1:
        rating = judge.score(image, question, responses[0])
        known = not math.isnan(rating)
        if as_json:
            yield json.dumps({"rating": rating if known else None, "status": "ok" if known else "none"})
        else:
            yield f"rating {rating:.2f} of 5" if known else "the judge gives no rating"
    elif len(responses) == 2:
        judgment = judge.judge(image, question, responses)
        yield from [json.dumps(asdict(judgment))] if as_json else _pair_lines(judgment, responses)
    else:
        ranking = judge.rank(image, question, responses)
        if as_json:
            facts = asdict(ranking)
            yield json.dumps({"ranking": facts.pop("order"), **facts})
            return
        for place, i in enumerate(ranking.order, 1):
            wins = ranking.win_probabilities[i]
            share = "no verdict" if wins is None else f"wins with probability {wins:.3f}"
            yield f"{place}. response {i + 1} ({share}): {responses[i]}"
        if ranking.status != "ok":
            yield f"some pairs have no verdict ({ranking.status}); the ranking is of the others"


def _pair_lines(judgment: Judgment, responses: Sequence[str]) -> Iterator[str]:
    if judgment.winner is None:
        reason = f"no verdict ({judgment.status})" if judgment.status != "ok" else "another verdict in each order"
        yield f"neither response is better: the judge gives {reason}; it wrote"
        for text in judgment.texts:
            yield f"  {text}"
        return
    probability = "" if judgment.probability is None else f", with probability {judgment.probability:.3f}"
    yield f"response {judgment.winner + 1} is better{probability}"
    yield f"  {responses[judgment.winner]}"
    yield f"evidence: {judgment.evidence}"
    if judgment.forced:
        yield "a judgment was cut before its verdict, which was asked for once more"
    if not judgment.consistent:
        yield "the judge changes its mind with the order of the responses; do not rely on this verdict"
