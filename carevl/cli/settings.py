"""`carevl settings`."""

from __future__ import annotations

import typer

from carevl.cli.options import Overrides, SettingsName, load_tree


def settings(settings: SettingsName = "mini", overrides: Overrides = None) -> None:
    """Print the resolved settings with the documentation of every field.

    The output is a settings file: save it, change it, and give its name to `carevl run`.
    """
    from carevl.settings.loader import reference

    for line in reference(load_tree(settings, overrides)):
        typer.echo(line)
