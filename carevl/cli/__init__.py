"""The `carevl` command: one file per command."""

from carevl.cli.app import main

__all__ = ["main"]
