"""Arguments and options that several commands have, and what several do with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from carevl.settings.tree import Settings
    from carevl.store.run import Run

SettingsName = Annotated[str, typer.Argument(metavar="SETTINGS", help="A preset's name or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting.")]
Rehearse = Annotated[
    bool,
    typer.Option(
        "--rehearse",
        help="Try a run for GPUs where there are none: a reserved GPU that torch does not see is a CPU. Nothing that "
        "it makes is a result, so it has a run directory of its own. Pretend what a local Ray has with --set "
        "cluster.num_gpus=1 and --set cluster.num_cpus=16.",
    ),
]
RunDir = Annotated[Path | None, typer.Option(help="Where results lie; runs/SETTINGS by default.")]
RunRoot = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
FiguresFile = Annotated[Path | None, typer.Option("--json", help="Also write every figure to this file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def load_tree(settings: str, overrides: Sequence[str] | None, *, rehearse: bool = False) -> Settings:
    """Return the settings that a command line names, changed as it says."""
    from carevl.settings.loader import load_settings

    return load_settings(settings, [*(overrides or ()), *(["cluster.rehearse=true"] if rehearse else [])], log)


def names_settings(target: str) -> bool:
    """Tell whether an argument that may be several things is a preset's name or a YAML file."""
    from carevl.settings.loader import presets

    return target in presets() or target.endswith((".yaml", ".yml"))


def run_at(settings: str, run_dir: Path | None) -> Run:
    """Return the run directory that a command line names: `run_dir`, or runs/SETTINGS."""
    from carevl.store.run import Run

    return Run.at(run_dir or Path("runs") / Path(settings).stem)


def log(line: str) -> None:
    """Print a line of progress, apart from what the command answers."""
    typer.echo(line, err=True)


def write_figures(file: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, with the directories above the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures, indent=2) + "\n")


def _list_protocols() -> str:
    from carevl.settings.data import ProtocolName

    return ", ".join(get_args(ProtocolName))


def _list_benchmarks() -> str:
    from carevl.benchmarks.suites import describe_suites

    return describe_suites()


def _list_engines() -> str:
    from carevl.models.engines import ENGINES

    return f"{', '.join(ENGINES)}, or one of your own as package.module:NAME"


def _list_formats() -> str:
    from carevl.data.formats import FORMATS

    return ", ".join(FORMATS)


def _list_stages() -> str:
    from carevl.stages import STAGES

    return ", ".join(stage.name for stage in STAGES)


def _list_arms() -> str:
    from carevl.compare.arms import ARMS

    return ", ".join(ARMS)


_LISTS: Mapping[str, Callable[[], str]] = {
    "{arms}": _list_arms,
    "{benchmarks}": _list_benchmarks,
    "{engines}": _list_engines,
    "{formats}": _list_formats,
    "{protocols}": _list_protocols,
    "{stages}": _list_stages,
}


class ListingCommand(TyperCommand):
    """A command whose help lists what is registered, in place of `{benchmarks}` and its like in the texts of options.

    What has to be imported for that is imported when the help is shown.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.params:
            text = getattr(parameter, "help", None) or ""
            for place, describe in _LISTS.items():
                if place in text:
                    parameter.help = text = text.replace(place, describe())  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)
