from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from carevl.confidence.pairs import Pairs

MakePairs = Callable[..., Pairs]


def _make(
    margins: Any,
    *,
    no_caption: Any = None,
    gold: Any = None,
    source: Any = None,
    images: Sequence[str] | None = None,
    equal: Any = None,
) -> Pairs:
    margins = np.asarray(margins, dtype=np.float32)
    margins = margins.reshape(*margins.shape, *(1,) * (3 - margins.ndim))
    n, n_experts, n_views = margins.shape

    def column(values: Any, shape: tuple[int, ...]) -> Any:
        return np.full(shape, np.nan, np.float32) if values is None else np.asarray(values, np.float32).reshape(shape)

    ids = pa.array([f"{k:06d}" for k in range(n)])
    return Pairs(
        experts=tuple("abcdefgh"[:n_experts]),
        views=tuple(f"view{v}" for v in range(n_views)),
        item_id=ids,
        image_id=ids if images is None else pa.array(images),
        item=np.arange(n, dtype=np.int32),
        first=np.zeros(n, np.int32),
        second=np.ones(n, np.int32),
        margins=margins,
        no_caption=column(no_caption, (n, n_experts)),
        lengths=np.full((n, 2), 10, np.int32),
        equal=np.zeros(n, np.bool_) if equal is None else np.asarray(equal),
        source=column(source, (n,)),
        gold=column(gold, (n,)),
    )


@pytest.fixture(scope="session")
def make_pairs() -> MakePairs:
    """Pairs of two-response items from margins [n], [n, experts] or [n, experts, views]; each its own image."""
    return _make


@pytest.fixture
def unit_pairs() -> Callable[[int], Pairs]:
    """Unlabelled pairs whose margins have size 1, so that `spread` calibrates to p = sigmoid(margin)."""
    return lambda n_experts: _make(np.ones((10, n_experts)))
