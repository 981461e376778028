"""Damaged files of finished tables: they alone are made again, and what follows only where they come out otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from carevl.errors import MachineError
from carevl.store.listing import Listing, called, describe_problems
from carevl.store.run import Run
from carevl.store.stage_key import StageKey
from carevl.store.table import REMADE, Table


def refuse_damaged(run: Run, keys: Mapping[str, StageKey], names: Collection[str]) -> None:
    """Refuse to go on from tables of which files are missing or cut.

    Raises:
        MachineError: there are some; it names table and file.
    """
    for name in names:
        if damage := run.table(keys[name]).find_damage():
            raise MachineError(
                f"{run.root}: {name}: {describe_problems(damage)}; make it again with: "
                f"carevl run {run.settings} --run-dir {run.root}"
            )


def finish(table: Table, manifest: Mapping[str, Any], files: Listing) -> str | None:
    """Declare a table whole; one that was reopened keeps its version if what is read of it came out as it was.

    Args:
        files: what it consists of.

    Returns:
        A sentence about files that came out otherwise, so that what was made from them follows; None where there are
        none.
    """
    earlier = table.earlier
    if earlier is None:
        table.finish(manifest, files)
        return None
    before = earlier.get("files", {})
    changed = [called(name) for name in {**before, **files} if before.get(name) != files.get(name)]
    alike = "contents" in manifest and manifest["contents"] == earlier.get("contents")
    if alike or not changed:
        table.finish(earlier, files)
        return None
    times = earlier.get("retried", 0) + 1
    table.finish({**manifest, "retried": times, REMADE: times}, files)
    return f"{', '.join(changed[:3])} came out otherwise than before; what was made from it follows"
