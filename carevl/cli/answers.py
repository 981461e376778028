"""What `carevl judge` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from carevl.reward_model import RewardModel


def answer(
    model: str, engine: str, image: Path, question: str, responses: Sequence[str], *, as_json: bool
) -> Iterator[str]:
    """The judge's answer, line by line: one response is rated, two are compared, more are ranked."""
    judge = RewardModel(model, engine=engine)
    if len(responses) == 1:
        rating = judge.score(image, question, responses[0])
        yield json.dumps({"rating": rating}) if as_json else f"rating {rating:.2f} of 5"
    elif len(responses) == 2:
        judgment = judge.judge(image, question, responses)
        if as_json:
            yield json.dumps(asdict(judgment))
            return
        yield f"response {judgment.winner + 1} is better, with probability {judgment.probability:.3f}"
        yield f"  {responses[judgment.winner]}"
        yield f"evidence: {judgment.evidence}"
        if not judgment.consistent:
            yield "the judge changes its mind with the order of the responses; do not rely on this verdict"
    else:
        order = judge.rank(image, question, responses)
        if as_json:
            yield json.dumps({"ranking": order})
            return
        for place, i in enumerate(order, 1):
            yield f"{place}. response {i + 1}: {responses[i]}"
