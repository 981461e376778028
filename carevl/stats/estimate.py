"""A value with its interval: one type for all rooms, one way to print it."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Estimate(TypedDict):
    """A value with its 95 % interval, as it is stored in JSON; None where it is undefined.

    A value is undefined where no row counts, or for a correlation of a constant.
    """

    value: float | None
    low: float | None
    high: float | None
    n: NotRequired[int]
    """Rows (pairs, for an audit) that the value is of."""


def format_estimate(estimate: Estimate | None, *, digits: int = 3, sign: bool = False, undefined: str = "-") -> str:
    """Write an estimate as `0.540 (0.496 to 0.583)`; without its interval where that is undefined.

    Args:
        digits: decimal places.
        sign: whether a number above 0 gets a plus, as in a difference.
        undefined: the text for no estimate and for one without a value.
    """
    if estimate is None or estimate["value"] is None:
        return undefined
    form = f"{'+' if sign else ''}.{digits}f"
    if estimate["low"] is None or estimate["high"] is None:
        return f"{estimate['value']:{form}}"
    return f"{estimate['value']:{form}} ({estimate['low']:{form}} to {estimate['high']:{form}})"
