"""`carevl sources`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from carevl.cli.options import Overrides, load_tree, names_settings, run_at


def sources(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATH|SETTINGS]",
            help="A file or directory of preference data or of questions, local or s3://, gs://, hf://. Or settings: "
            "a preset's name or a YAML file.",
        ),
    ] = None,
    format_name: Annotated[
        str | None, typer.Option("--format", help="Of a path: read as this format: {formats}; detected if absent.")
    ] = None,
    image_root: Annotated[
        str | None, typer.Option(help="Of a path: directory that image paths are relative to.")
    ] = None,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each file to read.")] = 1000,
) -> None:
    """List the formats that can be read, or tell what is found at a path or in the sources of settings.

    Without an argument: every format, the columns that it is known by, and the smallest row. With one: the format of
    each file, and the first of each kind of problem with its rows and images. Sources of settings are read as a run
    reads them: with their formats, captions, directories of images and bounds; addresses of images are fetched if
    data.allow_url_fetch is set.

    Example: carevl sources data/rlaif_v --rows 100

    Example: carevl sources mine.yaml --set data.max_image_pixels=1000000
    """
    from carevl.data.describe import describe_formats, describe_source
    from carevl.data.images import ImageLimits
    from carevl.data.reading import Source
    from carevl.errors import UserError

    if target is not None and names_settings(target):
        if format_name is not None or image_root is not None:
            raise UserError("--format and --image-root are for a path; the sources of settings have their own")
        lines = _describe_settings(target, overrides, rows)
    elif overrides:
        raise UserError("--set is for settings: a preset's name or a YAML file")
    elif target is None:
        lines = describe_formats()
    else:
        source = Source("source", target, format_name, image_root=image_root, respond=True)
        lines = describe_source(source, rows, ImageLimits())
    for line in lines:
        typer.echo(line)


def _describe_settings(name: str, overrides: Sequence[str] | None, rows: int) -> Iterator[str]:
    from carevl.data.describe import describe_sources
    from carevl.data.drawn import data_root
    from carevl.data.urls import UrlFetcher
    from carevl.data.videos import FrameReader
    from carevl.stages import ingest

    tree = load_tree(name, overrides)
    limits = ingest.limits_of(tree.data)
    fetcher = UrlFetcher() if tree.data.allow_url_fetch else None
    with data_root(tree, run_at(name, None)) as root:
        yield from describe_sources(ingest.sources(root), rows, limits, fetcher, FrameReader(tree.data.video))
