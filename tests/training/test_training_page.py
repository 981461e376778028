"""What the page on training shows is what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from carevl.settings.training import Training
from tests.training.mask_picture import picture

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def test_the_picture_of_the_mask_is_the_mask():
    assert picture() in PAGE


@pytest.mark.parametrize(
    "name", ["packing", "batch_tokens", "verdict_weight", "holdout", "patience", "checkpoint_steps", "tracker"]
)
def test_settings_that_the_page_names_exist(name):
    assert f"`{name}`" in PAGE
    assert name in Training.model_fields
