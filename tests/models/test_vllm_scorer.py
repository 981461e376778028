"""vLLM's pooling engine against transformers: same scores, same refusals, or no work at all."""

from __future__ import annotations

import itertools

import pytest

from carevl.miniworld.items import draw_items
from carevl.miniworld.models import expert_turn
from carevl.miniworld.questions import caption
from carevl.miniworld.weights import WEIGHTS
from carevl.models.engines import scorer
from carevl.models.reward_scorer import RewardScorer
from carevl.models.row_errors import SomeRowsError
from carevl.settings.models import Expert, Pool


@pytest.fixture(scope="module")
def conversations():
    drawn = [items[0] for _, items in itertools.islice(draw_items("test", "engines"), 16)]
    return [
        (expert_turn(caption(item.scene), item.question.text), response.text)
        for item in drawn
        for response in item.responses
    ]


@pytest.mark.vllm
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_scores_are_those_of_transformers(name, conversations):
    expected = RewardScorer(WEIGHTS / f"expert-{name}").score(conversations)
    expert = Expert(name=name, path=f"miniworld:expert-{name}", max_model_len=512, pool=Pool(batch_size=16))
    engine = scorer(expert, parity_tolerance=0.01)
    assert engine.score(conversations) == pytest.approx(expected, abs=5e-4)
    assert max(expected) - min(expected) > 0.1
    with pytest.raises(SomeRowsError, match="and the expert reads 512") as caught:
        engine.score([*conversations[:2], ("why " * 1000, "because")])
    assert caught.value.results == pytest.approx([*expected[:2], None], abs=5e-4)
