"""Stage `caption`: one description of every distinct image, for the experts to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.cluster.jobs import PoolJob, Processor
from carevl.cluster.resources import for_pool
from carevl.data.pictures import decode_images, picture
from carevl.data.spill import Shelf
from carevl.models.engines import generate_with_row_errors, generator
from carevl.models.engines.base import GenerationRequest
from carevl.models.locate import weights_fingerprint
from carevl.models.row_errors import Failure
from carevl.stages.base import (
    PARTS,
    Counts,
    LoadedModel,
    RunContext,
    Stage,
    in_pool,
    pixel_inputs,
    reads,
    without_inputs,
)
from carevl.store.ingested import borrowed_captions
from carevl.store.schemas import BORROWED_CAPTIONS, CAPTIONS, row_error
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.cluster.resources import Reservation
    from carevl.data.drawn import DataRoot
    from carevl.models.engines.base import Generator
    from carevl.settings.models import Captioner
    from carevl.settings.tree import Settings
    from carevl.store.ingested import Ingested

VERSION = 1
VIEW = "default"


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what captions depend on, apart from the images."""
    del root, table
    captioner = settings.captioner
    model = {
        "version": VERSION,
        "weights": weights_fingerprint(captioner.path, captioner.revision),
        **captioner.model_dump(include={"engine", "dtype", "max_model_len", "prompt", "max_tokens"}),
        **pixel_inputs(settings),
        **captioner.computation,
    }
    return {"caption": model}


@dataclass
class CaptionProcessor(Processor):
    """Turns a part of `images` into a part of `captions`."""

    captioner: Captioner
    resize_pixels: int | None = None
    engine: Generator = field(init=False, repr=False)

    def setup(self) -> None:
        self.engine = generator(self.captioner)

    def preprocess(self, tables: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        """Decode the pictures."""
        return {"images": decode_images(tables["images"], resize_pixels=self.resize_pixels)}

    def row_inputs(self, tables: Mapping[str, pa.Table]) -> Mapping[tuple[Any, ...], Any]:
        """Nothing but the image, whose key is a hash of it."""
        rows = tables["images"].select(["image_id", "error"]).to_pylist()
        return {(row["image_id"],): None for row in rows if row["error"] is None}

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        rows = tables["images"].to_pylist()
        good = [row for row in rows if row["error"] is None]
        pictures = [picture(row, resize_pixels=self.resize_pixels) for row in good]
        requests = [GenerationRequest((image,), self.captioner.prompt) for image in pictures]
        generations = generate_with_row_errors(self.engine, requests, max_tokens=self.captioner.max_tokens)
        texts = dict(zip((row["image_id"] for row in good), generations, strict=True))
        captions = []
        for row in rows:
            written, error = texts.get(row["image_id"]), row["error"]
            text = None if isinstance(written, Failure) else written
            if isinstance(written, Failure):
                error = row_error("caption", written.kind, written.message)
            elif text is not None and text.truncated:
                error = row_error(
                    "caption", "truncated", f"the caption is longer than {self.captioner.max_tokens} tokens"
                )
            elif text is not None and not text.text.strip():
                error = row_error("caption", "empty", "the captioner wrote nothing")
            captions.append(
                {
                    "image_id": row["image_id"],
                    "view": VIEW,
                    "captioner": self.captioner.path,
                    "text": text.text if text else None,
                    "tokens": text.tokens if text else None,
                    "error": error,
                }
            )
        return pa.Table.from_pylist(captions, CAPTIONS)


def run(context: RunContext) -> Counts:
    """Caption every image in the pool."""
    captioner, target = context.settings.captioner, context.table("caption")
    job = PoolJob(
        name="caption",
        processor=CaptionProcessor(captioner, context.settings.data.resize_pixels),
        sources={"images": context.ingested.images},
        target=target,
        pool=captioner.pool,
        key="image_id",
        identity=("view",),
        earlier=context.earlier("caption", target),
    )
    counts = context.run_pools([job])
    write_borrowed(context.ingested, target)
    return counts


def write_borrowed(ingested: Ingested, captions: Table) -> None:
    """Write to `borrowed`, below the captions, those of the images that items of a part show and that lie in others."""
    target = borrowed_captions(captions)
    numbers = ingested.borrowed.parts()
    borrowed = [ingested.borrowed.read(number, ["image_id"])["image_id"].to_pylist() for number in numbers]
    borrowers: dict[str, list[int]] = {}
    for number, names in zip(numbers, borrowed, strict=True):
        for name in names:
            borrowers.setdefault(name, []).append(number)
    with TemporaryDirectory(dir=captions.directory, prefix=".") as scratch:
        shelf = Shelf(Path(scratch), "captions", BORROWED_CAPTIONS)
        for number in captions.parts() if borrowers else ():
            for row in captions.read(number, ["image_id", "view", "text", "error"]).to_pylist():
                text = row["text"] if row["error"] is None else None
                for borrower in borrowers.get(row["image_id"], ()):
                    shelf.add(borrower, {"image_id": row["image_id"], "view": row["view"], "text": text})
        for number in numbers:
            rows = sorted(shelf.read(number), key=lambda row: (row["image_id"], row["view"]))
            target.write(number, pa.Table.from_pylist(rows, BORROWED_CAPTIONS))


def reservations(settings: Settings) -> list[Reservation]:
    """Return what the pool reserves."""
    return [for_pool("caption", "captioner.pool", settings.captioner.pool)]


def models(settings: Settings, table: str) -> list[LoadedModel]:
    """Return the captioner."""
    del table
    return [in_pool("captioner", settings.captioner)]


STAGE = Stage(
    name="caption",
    inputs=reads("ingest"),
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    reservations=reservations,
    models=models,
    retryable="caption",
    row_facts=without_inputs,
    contents=PARTS,
)
