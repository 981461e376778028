"""The table of families in `docs/models.md` against a fresh measurement."""

from __future__ import annotations

import pytest

from carevl.models.families import FAMILIES
from tests.helpers.families import FAMILIES as WRITTEN
from tests.helpers.families import PLAIN
from tests.training.family_table import measure, stored_table

pytestmark = pytest.mark.train

_OFTEN = ("gemma3", "internvl", "llama4", "qwen3_vl")
_EXACT = 1e-3
"""Nats of some 80."""
_SAME_GRADIENTS = 1e-5
"""Of the largest."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _OFTEN else pytest.mark.nightly) for name in WRITTEN]
)
def test_what_the_document_says_of_a_family_holds(name, family_directory):
    measured = measure(family_directory(name))
    family = FAMILIES["llava" if name == "pixtral" else name]
    assert max(measured.plain, measured.merged, measured.transformers) < _EXACT
    assert max(measured.lora, measured.full) < _SAME_GRADIENTS
    if name in PLAIN:
        assert (measured.alone, measured.joined, measured.embedded) == (None, None, None)
    else:
        assert measured.alone is not None
        assert measured.alone < _EXACT
        for used, difference in ((family.joins, measured.joined), (family.embeds, measured.embedded)):
            if used:
                assert difference is not None
                assert difference < _EXACT
    [stored] = [line for line in stored_table().splitlines() if line.startswith(f"| `{name}` |")]
    cells = [cell.strip() for cell in stored.split("|")[2:-1]]
    values = (measured.alone, measured.joined, measured.embedded)
    assert ["no" not in cell for cell in cells[:3]] == [value is not None and value < _EXACT for value in values]
    assert max(map(float, cells[3:8])) < _EXACT
