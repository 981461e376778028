"""Damages files of a run one at a time, and looks whether it is noticed and mended.

python -m tests.chaos.damage RUN --damages 300 --seed 1

RUN is a finished run; it is copied. Prints a JSON line per damage, and a summary. Where a damage is
mended, rows are counted: those of the parts that were written anew, in all tables, and those of the damaged table.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from carevl.cli.app import app
from carevl.cluster.connect import ray_cluster
from carevl.errors import UserError
from carevl.pipeline.run import run_pipeline
from carevl.settings.loader import load_settings
from carevl.stats.draws import hash_uniform
from carevl.store.parts import count_rows
from carevl.store.run import Run
from carevl.training.progress import STEPS
from tests.chaos.job import find_difference, fingerprint

WAYS = ("deleted", "emptied", "cut", "flipped")
UNREAD = ("*.lock", "*.log", "curve.png", "README.md", "begun.json")
"""Files that no run reads once it is finished; nor does it those below directories whose names begin with a dot."""
ALONE = ("manifest.json", "results.json", "rates.json", "injection.json", ".files.json")
"""Files that nothing else lists: where one is not there, it is not damaged, but not written yet."""


def damage(file: Path, way: str, draw: random.Random) -> None:
    """Damage a file that may be linked elsewhere: the other link stays whole."""
    data = bytearray(file.read_bytes())
    file.unlink()
    if way == "deleted":
        return
    if way == "flipped":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(b"" if way == "emptied" else data[: draw.randrange(1, len(data))] if way == "cut" else data)


def find_files(run_dir: Path) -> list[Path]:
    """Return the files of a run that are not empty and that a run may read."""
    return sorted(
        file
        for file in run_dir.rglob("*")
        if file.is_file() and file.stat().st_size and _is_read(file.relative_to(run_dir))
    )


def _is_read(place: Path) -> bool:
    hidden = any(part.startswith(".") for part in place.parts if part not in ALONE)
    return not (hidden or any(place.match(pattern) for pattern in UNREAD))


def ways_of(file: Path) -> tuple[str, ...]:
    """Return the ways in which a file can be damaged."""
    lists_itself = file.parent.name == "features" and file.suffix == ".json"
    unlisted = file.name in ALONE or file.parent.name == "reference" or lists_itself
    return WAYS[1:] if unlisted else WAYS


def kind_of(run_dir: Path, file: Path) -> str:
    """Return what kind of file it is: its stage, and its name without numbers."""
    place = file.relative_to(run_dir)
    return f"{place.parts[0]}/{''.join(letter for letter in file.name if not letter.isdigit())}"


def run_again(run_dir: Path) -> Exception | None:
    """Run the job again as `carevl run --verify` does, on the Ray of this process; return what stopped it."""
    try:
        run_pipeline(load_settings(str(run_dir.parent / "settings.yaml")), Run(run_dir), lambda _: None, verify=True)
    except Exception as error:
        return error
    return None


def written_at(run_dir: Path) -> dict[Path, int]:
    """Return when each part of the tables of a run was written."""
    return {file: file.stat().st_mtime_ns for file in run_dir.rglob("part-*.parquet")}


def table_rows(run_dir: Path, file: Path) -> int:
    """Return the rows of the table that a file belongs to, with those of tables below it; 0 where it is in none."""
    owners = [place for place in file.relative_to(run_dir).parents if (run_dir / place / "manifest.json").exists()]
    return sum(map(count_rows, (run_dir / owners[0]).rglob("part-*.parquet"))) if owners else 0


def try_damage(run_dir: Path, file: Path, way: str, draw: random.Random, *, mend: bool) -> dict[str, Any]:
    """Damage a file; return whether `status --verify` names it, and with `mend` whether a run mends it.

    With `mend` also the `rows` of its table, and how many rows were made again, there and in what follows.
    """
    expected, kept = fingerprint(run_dir), file.read_bytes()
    n_rows, before = table_rows(run_dir, file), written_at(run_dir)
    damage(file, way, draw)
    told = CliRunner().invoke(app, ["status", str(run_dir), "--verify"])  # in this process, which has loaded it all
    words = f"{told.output} {told.exception}"
    result: dict[str, Any] = {
        "file": str(file.relative_to(run_dir)),
        "way": way,
        "status": told.exit_code,
        "named": told.exit_code != 0 and (file.name in words or _called(file) in words),
        "traceback": not isinstance(told.exception, SystemExit | UserError | None),
    }
    if mend:
        stopped = run_again(run_dir)
        result["stopped"] = None if stopped is None else repr(stopped)
        if file.name == STEPS:  # nothing is trained again for its log
            del expected[f"{file.parent.relative_to(run_dir)}/losses"]
        result["difference"] = find_difference(expected, fingerprint(run_dir))
        remade = [part for part, written in written_at(run_dir).items() if before.get(part) != written]
        result |= {"rows": n_rows, "rows_remade": sum(map(count_rows, remade))}
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(kept)
    return result


def _called(file: Path) -> str:
    number = file.stem.removeprefix("part-")
    return f"part {int(number)}" if number.isdigit() else file.name


def main(arguments: Sequence[str]) -> int:
    """Damage as often as the command line says; return an exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--damages", type=int, default=300)
    parser.add_argument("--mended", type=int, default=30, help="of them, those after which the run is made whole again")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    draw, counts, problems = random.Random(options.seed), Counter[str](), 0
    settings = load_settings(str(options.run / "settings.yaml"))
    with tempfile.TemporaryDirectory() as scratch, ray_cluster(settings.cluster):
        run_dir = Path(scratch) / "run"
        shutil.copytree(options.run, run_dir)
        shutil.copy(run_dir / "settings.yaml", scratch)
        for number in range(options.damages):
            files = find_files(run_dir)
            kinds = sorted(
                {kind_of(run_dir, file) for file in files}, key=lambda kind: hash_uniform(options.seed, kind)
            )
            kind = kinds[number % len(kinds)]
            file = draw.choice([file for file in files if kind_of(run_dir, file) == kind])
            mend = number < options.mended
            result = try_damage(run_dir, file, draw.choice(ways_of(file)), draw, mend=mend)
            wrong = not result["named"] or result["traceback"] or (mend and (result["stopped"] or result["difference"]))
            counts["noticed" if result["named"] else "not noticed"] += 1
            if result.get("rows"):
                counts.update(of_tables=1, rows=result["rows"], rows_remade=result["rows_remade"])
            problems += bool(wrong)
            print(json.dumps({"kind": kind, **result}), flush=True)
    print(json.dumps({"damages": options.damages, **counts, "problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
