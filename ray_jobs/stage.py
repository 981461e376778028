"""One entry point for every stage: join the running cluster, run the stages up to NAME, say where the output is.

```
ray job submit -- python ray_jobs/stage.py score --settings mine.yaml --run-dir /shared/runs/mine
```

The other files here are its aliases. Exit statuses are those of `carevl`, which `--help` lists.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path


def main(last: str | None = None, *, whole: bool = False) -> None:
    """Run the stages up to and including `last`; the one that the command line names when None.

    Args:
        whole: run all of them.
    """
    # Python and Ray's workers look here first, and select.py is not the standard library's.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    extent = "the whole pipeline" if whole else f"the stages up to {last or 'NAME'}"
    from carevl.cli.ending import list_statuses
    from carevl.cli.supervisor import supervise

    description = f"Run {extent} on the Ray cluster that is joined."
    parser = argparse.ArgumentParser(description=description, epilog=list_statuses())
    if last is None and not whole:
        parser.add_argument("name", metavar="NAME", help="the last stage to run, such as score or sft")
    parser.add_argument("--settings", default="mini", help="a preset's name or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    parser.add_argument("--run-dir", type=Path, required=True, help="absolute, and the same directory on every node")
    parser.add_argument(
        "--rehearse", action="store_true", help="a reserved GPU that torch does not see is a CPU; no result comes of it"
    )
    if whole:
        parser.add_argument("--final", action="store_true", help="evaluate on the benchmarks' test data as well")
    arguments = parser.parse_args(namespace=argparse.Namespace(final=False, name=last))

    supervise(parser.prog, partial(_run_to_end, parser.prog, arguments))


def _run_to_end(program: str, arguments: argparse.Namespace) -> None:
    from carevl.cli.ending import ending

    with ending(program, arguments.run_dir):
        overrides = [*arguments.set, *(["cluster.rehearse=true"] if arguments.rehearse else [])]
        _run(arguments.settings, overrides, arguments.run_dir, arguments.name, final=arguments.final)
    print(f"{program}: done; the output is in {arguments.run_dir}")


def _run(source: str, overrides: Sequence[str], run_dir: Path, last: str | None, *, final: bool) -> None:
    from carevl.cluster.connect import check_cluster, is_private, ray_cluster
    from carevl.errors import UserError
    from carevl.pipeline.check import check_settings
    from carevl.pipeline.final import evaluate_final
    from carevl.pipeline.run import run_pipeline
    from carevl.settings.loader import load_settings
    from carevl.store.run import Run

    settings, run = load_settings(source, overrides), Run.at(run_dir)
    if not run_dir.is_absolute():
        raise UserError(
            f"--run-dir {run_dir} is relative: a job's own directory is deleted; name one on shared storage"
        )
    if is_private(settings.cluster):
        raise UserError("no Ray cluster to join: submit this with `ray job submit`, or set RAY_ADDRESS")
    check_cluster(settings.cluster)
    check_settings(settings, last, final=final)  # before the cluster is joined
    with run.lock(), ray_cluster(settings.cluster):
        for table in run_pipeline(settings, run, _log, last):
            print(f"{table.name:16s} {table.action:8s} {table.rows_out:8d} rows  {table.errors:6d} errors")
        if final:
            evaluate_final(settings, run, _log)


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
