"""Every test belongs to one tier; what a test uses decides where neither it nor its module says so.

`unit` is for tests that need this process alone and about a second at most; a unit test that starts a Ray fails. The
processes of pytest-xdist take tests by module, so that each makes the fixtures of a module once; modules of the
heavy tiers come first.
"""

from __future__ import annotations

import sys

import pytest

TIERS = ("train", "ray", "vllm", "unit")
OF_FIXTURE = {
    "begin": "train",
    "process_group": "train",
    "ray": "ray",
    "small_run": "ray",
    "raylets": "ray",
    "head": "ray",
    "submitted": "ray",
}
_RAY_WAS_UP = pytest.StashKey[bool]()


def tier_of(item: pytest.Item) -> str:
    """Return the tier of a test.

    Raises:
        pytest.UsageError: its marks name several.
    """
    stated = [tier for tier in TIERS if item.get_closest_marker(tier)]
    if len(stated) > 1:
        raise pytest.UsageError(f"{item.nodeid} is in the tiers {', '.join(stated)}; a test has one")
    needed = {OF_FIXTURE[name] for name in getattr(item, "fixturenames", ()) if name in OF_FIXTURE}
    return next(tier for tier in TIERS if tier in (stated or [*needed, "unit"]))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    heaviest: dict[str, int] = {}
    for item in items:
        tier, module = tier_of(item), item.nodeid.partition("::")[0]
        if not item.get_closest_marker(tier):
            item.add_marker(tier)
        heaviest[module] = min(heaviest.get(module, len(TIERS)), TIERS.index(tier))
    items.sort(key=lambda item: heaviest[item.nodeid.partition("::")[0]])


def _ray_is_up() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_RAY_WAS_UP] = _ray_is_up()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    if item.get_closest_marker("unit") and _ray_is_up() and not item.stash[_RAY_WAS_UP]:
        pytest.fail(f"{item.nodeid} started a Ray: mark it `ray`", pytrace=False)
