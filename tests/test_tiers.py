"""The tier of a test: from its mark, else from the fixtures that it uses, else `unit`; and never two."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.helpers.tiers import tier_of


@dataclass(frozen=True)
class Item:
    """As much of a collected test as decides its tier."""

    marks: tuple[str, ...] = ()
    fixturenames: tuple[str, ...] = ()
    nodeid: str = "tests/test_some.py::test_it"

    def get_closest_marker(self, name: str) -> bool:
        return name in self.marks


@pytest.mark.parametrize(
    ("item", "tier"),
    [
        (Item(), "unit"),
        (Item(fixturenames=("tmp_path", "small_run")), "ray"),
        (Item(fixturenames=("ray", "begin")), "train"),
        (Item(marks=("vllm", "nightly"), fixturenames=("ray",)), "vllm"),
        (Item(marks=("fault",)), "unit"),
    ],
)
def test_every_test_has_one_tier(item, tier):
    assert tier_of(item) == tier


def test_two_tiers_are_refused():
    with pytest.raises(pytest.UsageError, match="test_it is in the tiers ray, vllm; a test has one"):
        tier_of(Item(marks=("vllm", "ray")))
