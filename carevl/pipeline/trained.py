"""What a run would train of its judge, before it does."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.models.own_code import trust_own_code

if TYPE_CHECKING:
    from carevl.settings.tree import Settings


def trained_lines(settings: Settings, tables: Collection[str], judge: Path | None) -> Iterator[str]:
    """Yield a line for every phase among some tables: its adapters or weights, and what of the judge is frozen.

    And one where the judge cannot share prefixes, as the phase is set to.

    Args:
        judge: its directory; nothing is said of one that is not on this machine.

    Raises:
        UserError: there is nothing to train where the settings say.
    """
    trained = {table.rpartition("/")[2] for table in tables}  # rounds train as phase 2 does
    phases = [phase for phase in ("sft", "dpo") if phase in trained]
    if judge is None or not phases:
        return
    from carevl.models.packing import usable_packing
    from carevl.training.skeleton import load_skeleton  # torch and transformers take seconds
    from carevl.training.trainable import describe_trained

    with trust_own_code(settings.judge.trust_remote_code):
        model = load_skeleton(judge)
    for phase in phases:
        training = getattr(settings, phase)
        yield f"{phase:16s} {describe_trained(model, training).line()}"
        _, reason = usable_packing(model, training.packing)
        if reason is not None:
            yield f"{phase:16s} {reason}"
