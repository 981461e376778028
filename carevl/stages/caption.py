"""Stage `caption`: one description of every distinct image, for the experts to read.

With `captioner.video: one` there is one of all frames of a video together, in the part of the items that show it, and
none of images that are frames of videos and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.cluster.jobs import PoolJob, Processor
from carevl.cluster.resources import for_pool
from carevl.data.pictures import decode_images, decode_shown, picture, shown_images
from carevl.data.shown_videos import frames_id, videos_of
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
from carevl.store.schemas import BORROWED_CAPTIONS, CAPTIONS, SUBJECTS, row_error
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
        **(captioner.model_dump(include={"video", "video_prompt"}) if captioner.video == "one" else {}),
        **pixel_inputs(settings),
        **captioner.computation,
    }
    return {"caption": model}


@dataclass
class CaptionProcessor(Processor):
    """Turns a part of `images`, or of `SUBJECTS` and their images, into a part of `captions`."""

    captioner: Captioner
    resize_pixels: int | None = None
    engine: Generator = field(init=False, repr=False)

    def setup(self) -> None:
        self.engine = generator(self.captioner)

    def preprocess(self, tables: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        """Decode the pictures."""
        if "subjects" not in tables:
            return {"images": decode_images(tables["images"], resize_pixels=self.resize_pixels)}
        needed = {name for names in tables["subjects"]["images"].to_pylist() for name in names}
        return decode_shown(tables, needed, self.resize_pixels)

    def row_inputs(self, tables: Mapping[str, pa.Table]) -> Mapping[tuple[Any, ...], Any]:
        """Nothing but the image or images, of which the key is a hash."""
        return {(row["image_id"],): None for row in _subjects(tables, []) if row["error"] is None}

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        rows = _subjects(tables, ["bytes", *(["rgb"] if "rgb" in tables["images"].column_names else [])])
        good = [row for row in rows if row["error"] is None]
        requests = [self._request(row["images"]) for row in good]
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

    def _request(self, images: Sequence[Mapping[str, Any]]) -> GenerationRequest:
        pictures = tuple(picture(image, resize_pixels=self.resize_pixels) for image in images)
        prompt = self.captioner.prompt if len(images) == 1 else self.captioner.video_prompt
        return GenerationRequest(pictures, prompt, places=(0,) * len(pictures))


def _subjects(tables: Mapping[str, pa.Table], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return what is captioned: `image_id`, `images` (rows with the columns) and `error`, of images alone."""
    if "subjects" not in tables:
        rows = tables["images"].select(["image_id", "error", *columns]).to_pylist()
        return [{"image_id": row["image_id"], "images": [row], "error": row["error"]} for row in rows]
    shown = shown_images(tables).select(["image_id", "error", *columns]).to_pylist()
    by_id = {row["image_id"]: row for row in shown}
    subjects = tables["subjects"].to_pylist()
    found = [(row["image_id"], [by_id[name] for name in row["images"]]) for row in subjects]
    return [
        {"image_id": name, "images": images, "error": next((row["error"] for row in images if row["error"]), None)}
        for name, images in found
    ]


def run(context: RunContext) -> Counts:
    """Caption every image, or video, in the pool."""
    captioner, target = context.settings.captioner, context.table("caption")
    ingested = context.ingested
    sources = {"images": ingested.images}
    if captioner.video == "one":
        subjects = Table(target.directory / "subjects")
        write_subjects(ingested, subjects)
        sources = {"subjects": subjects, "images": ingested.images, "borrowed": ingested.borrowed}
    job = PoolJob(
        name="caption",
        processor=CaptionProcessor(captioner, context.settings.data.resize_pixels),
        sources=sources,
        target=target,
        pool=captioner.pool,
        key="image_id",
        identity=("view",),
        earlier=context.earlier("caption", target),
    )
    counts = context.run_pools([job])
    write_borrowed(ingested, target)
    return counts


def write_subjects(ingested: Ingested, target: Table) -> None:
    """Write what has a caption where videos have one each: a part for every part of the images.

    It lies in the part of the items that show it, and so do its images, or the table `borrowed` has them there.
    """
    videos: dict[int, dict[str, list[str]]] = {}
    frames: set[str] = set()
    others: set[str] = set()
    for number in ingested.items.parts():
        own = videos.setdefault(number, {})
        for item in ingested.items.read(number, ["images", "sources", "error"]).to_pylist():
            images = item["images"]
            shown = set(images)
            for begin, end in videos_of(item) if item["error"] is None else ():
                own[frames_id(images[begin:end])] = images[begin:end]
                frames.update(images[begin:end])
                shown.difference_update(images[begin:end])
            others |= shown
    for number in ingested.images.parts():
        alone = ingested.images.read(number, ["image_id"])["image_id"].to_pylist()
        subjects = {name: [name] for name in alone if name in others or name not in frames}
        rows = [{"image_id": name, "images": images} for name, images in (subjects | videos.get(number, {})).items()]
        target.write(number, pa.Table.from_pylist(rows, SUBJECTS))


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
