"""`carevl sources`."""

from __future__ import annotations

from typing import Annotated

import typer


def sources(
    path: Annotated[
        str | None, typer.Argument(help="File or directory of preference data, local or s3://, gs://.")
    ] = None,
    format_name: Annotated[
        str | None, typer.Option("--format", help="Read as this format: {formats}; detected if absent.")
    ] = None,
    image_root: Annotated[str | None, typer.Option(help="Directory that image paths are relative to.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each file to read.")] = 1000,
) -> None:
    """List the preference formats that can be read, or tell what is found at a path.

    Without PATH: every format, the columns that it is known by, and the smallest row. With PATH: the format of each
    file, and the first of each kind of problem with its rows and images.

    Example: carevl sources data/rlaif_v --rows 100
    """
    from carevl.data.describe import describe_formats, describe_source
    from carevl.data.images import ImageLimits
    from carevl.data.reading import Source

    if path is None:
        lines = describe_formats()
    else:
        lines = describe_source(Source("source", path, format_name, image_root=image_root), rows, ImageLimits())
    for line in lines:
        typer.echo(line)
