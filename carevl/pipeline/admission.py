"""What the stages reserve on Ray, and whether a run of them may begin."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from carevl.cluster.gpus import check_gpus
from carevl.cluster.resources import Reservation, check, supply
from carevl.stages.rounds import all_stages

if TYPE_CHECKING:
    from carevl.settings.tree import Settings
    from carevl.stages.base import Stage


def reservations(
    settings: Settings, tables: Collection[str] | None = None, stages: Sequence[Stage] | None = None
) -> list[Reservation]:
    """Return what the stages reserve that make the named tables, or all of them, in their order."""
    needs = [need for stage in stages or all_stages(settings) for need in stage.reservations(settings)]
    if tables is None:
        return needs
    return [need for need in needs if any(need.stage in (table, table.split("/")[0]) for table in tables)]


def admit(settings: Settings, tables: Collection[str], stages: Sequence[Stage] | None = None) -> None:
    """Let a run that makes the named tables begin on the Ray that is joined.

    Raises:
        RunError: what a stage reserves can never be had here, and the message names every such stage; or torch does not
            see the GPUs of a node.
    """
    needs = reservations(settings, tables, stages)
    check(needs, supply(settings.cluster, needs))
    if any(need.resources.get("GPU") for need in needs):
        check_gpus()
