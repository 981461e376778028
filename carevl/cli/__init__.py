"""The `carevl` command: one file per command. Nothing below this room prints or exits."""

from carevl.cli.app import main

__all__ = ["main"]
