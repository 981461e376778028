"""What every entry point does: joins the running cluster, runs the pipeline, says where the output is.

Exit codes: 0 done, 2 a mistake or a refusal (one line says which), 1 an error of the program.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(last: str | None = None) -> None:
    """Runs the stages up to and including `last`, or all of them."""
    # Python and Ray's workers look here first, and select.py is not the standard library's.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    what = f"the stages up to {last}" if last else "the whole pipeline"
    parser = argparse.ArgumentParser(description=f"Runs {what} on the Ray cluster that is joined.")
    parser.add_argument("--settings", default="mini", help="a preset's name or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    parser.add_argument("--run-dir", type=Path, required=True, help="absolute, and the same directory on every node")
    if last is None:
        parser.add_argument("--final", action="store_true", help="evaluate on the benchmarks' test data as well")
    told = parser.parse_args(namespace=argparse.Namespace(final=False))

    from carevl.errors import UserError

    try:
        _run(told.settings, told.set, told.run_dir, last, final=told.final)
    except (OSError, ValueError, UserError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{parser.prog}: done; the output is in {told.run_dir}")


def _run(source: str, overrides: Sequence[str], run_dir: Path, last: str | None, *, final: bool) -> None:
    from carevl.cluster.connect import is_private, ray_cluster
    from carevl.errors import UserError
    from carevl.pipeline import core as pipeline
    from carevl.settings import load_settings
    from carevl.stages import evaluate
    from carevl.store.run import Run

    settings, where = load_settings(source, overrides), Run.at(run_dir)
    if not run_dir.is_absolute():
        raise UserError(
            f"--run-dir {run_dir} is relative: a job's own directory is deleted; name one on shared storage"
        )
    if is_private(settings.cluster):
        raise UserError("no Ray cluster to join: submit this with `ray job submit`, or set RAY_ADDRESS")
    if final:
        evaluate.final(settings)  # refuses before anything runs
    with ray_cluster(settings.cluster):
        for stage in pipeline.run(settings, where, _say, last):
            print(f"{stage.name:16s} {stage.action:8s} {stage.rows_out:8d} rows  {stage.errors:6d} errors")
        if final:
            pipeline.run_final(settings, where, _say)


def _say(line: str) -> None:
    print(line, flush=True)
