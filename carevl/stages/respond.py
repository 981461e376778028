"""Stage `respond`: models answer the questions of sources that have no responses, each as often as the settings say.

Where they say so, some questions are also asked about the image out of focus, or about a grey one: what is answered
then was not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import ImageFilter
from PIL.Image import new as new_image

from carevl.cluster.earlier_rows import known_requests
from carevl.cluster.jobs import PoolJob, Processor
from carevl.cluster.resources import for_pool
from carevl.data.pictures import decode_shown, picture, shown_images
from carevl.judging.turns import Turn, shift_places, turns_of
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
from carevl.stats.draws import hash_uniform
from carevl.store.schemas import ANSWERS, row_error

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.cluster.resources import Reservation
    from carevl.data.drawn import DataRoot
    from carevl.models.engines.base import Generator
    from carevl.settings.respond import Negatives, Responder
    from carevl.settings.tree import Settings

VERSION = 1
IMAGE = "image"
_BLUR_SHARE = 0.1
"""Radius of the blur as a share of the image's longer side: colours are left, shapes and letters are not."""
_GREY = (127, 127, 127)


def is_question(item: Mapping[str, Any]) -> bool:
    """Return whether a row of `items` is good and has no responses."""
    return item["error"] is None and not item["responses"]


def gets_negative(item_id: str, negatives: Negatives, seed: int) -> bool:
    """Return whether a question is one of those that get an answer which should be wrong."""
    return hash_uniform(seed, "negative", item_id) < negatives.share


@dataclass(frozen=True)
class Ask:
    """One question to a responder: what it is shown, in which words it is asked, and the number of the draw."""

    view: str
    prompt: str
    sample: int


def list_asks(item: Mapping[str, Any], responder: Responder, negatives: Negatives, seed: int) -> Iterator[Ask]:
    """Yield what a responder is asked about an item."""
    for prompt in responder.prompts:
        yield from (Ask(IMAGE, prompt, sample) for sample in range(responder.samples))
    if item["images"] and gets_negative(item["item_id"], negatives, seed):
        samples = negatives.samples if responder.temperature else 1
        for view in (kind for kind in negatives.kinds if kind != "other"):
            yield from (Ask(view, responder.prompts[0], sample) for sample in range(samples))


def count_asks(responder: Responder, negatives: Negatives) -> float:
    """Return the answers of a responder to a question with an image, on average."""
    unseen = len(set(negatives.kinds) - {"other"}) * (negatives.samples if responder.temperature else 1)
    return len(responder.prompts) * responder.samples + negatives.share * unseen


@dataclass
class RespondProcessor(Processor):
    """Turns a part of `items` and their images into a part of `answers`."""

    responder: Responder
    negatives: Negatives
    seed: int
    resize_pixels: int | None = None
    engine: Generator = field(init=False, repr=False)

    @classmethod
    def of(cls, settings: Settings, responder: Responder) -> RespondProcessor:
        """Return the work of a responder."""
        return cls(responder, settings.respond.negatives, settings.seed, settings.data.resize_pixels)

    def setup(self) -> None:
        self.engine = generator(self.responder)

    def preprocess(self, tables: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        """Decode the pictures of the questions."""
        needed = {name for item in _questions(tables) for name in item["images"]}
        return decode_shown(tables, needed, self.resize_pixels)

    def row_inputs(self, tables: Mapping[str, pa.Table]) -> Mapping[tuple[Any, ...], Any]:
        """Nothing but the question, whose key is a hash of it and its images."""
        return {
            (item["item_id"], ask.view, ask.prompt, ask.sample): None
            for item in _questions(tables)
            for ask in list_asks(item, self.responder, self.negatives, self.seed)
        }

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        images = {row["image_id"]: row for row in shown_images(tables).to_pylist()}
        known = known_requests(tables)
        rows: list[dict[str, Any]] = []
        requests: list[GenerationRequest] = []
        for item in _questions(tables):
            pictures = [picture(images[name], resize_pixels=self.resize_pixels) for name in item["images"]]
            views: dict[str, tuple[Image, ...]] = {}
            for ask in list_asks(item, self.responder, self.negatives, self.seed):
                if (item["item_id"], ask.view, ask.prompt, ask.sample) in known:
                    continue
                if ask.view not in views:
                    views[ask.view] = tuple(_as_seen(image, ask.view) for image in pictures)
                requests.append(self._request(item, ask, views[ask.view]))
                rows.append({"item_id": item["item_id"], "model": self.responder.name, **vars(ask)})
        responder = self.responder
        generations = generate_with_row_errors(
            self.engine,
            requests,
            max_tokens=responder.max_tokens,
            temperature=responder.temperature,
            top_p=responder.top_p,
        )
        for row, generation in zip(rows, generations, strict=True):
            if isinstance(generation, Failure):
                row["error"] = row_error("respond", generation.kind, generation.message)
            else:
                row |= {"text": generation.text, "tokens": generation.tokens, "truncated": generation.truncated}
        return pa.Table.from_pylist(rows, ANSWERS)

    def _request(self, item: Mapping[str, Any], ask: Ask, images: tuple[Image, ...]) -> GenerationRequest:
        *before, question = turns_of(item)
        turn = write_prompt(ask.prompt, question)
        seed = int(hash_uniform(self.seed, item["item_id"], ask.view, ask.prompt, ask.sample) * 2**31)
        return GenerationRequest(images, turn.text, seed=seed, places=turn.places, earlier=tuple(before))


def write_prompt(prompt: str, question: Turn) -> Turn:
    """Return the turn that asks a question in the words of a prompt; its images stand where they stood."""
    before, _, after = prompt.partition("{question}")
    return Turn("user", f"{before}{question.text}{after}", shift_places(question.places, len(before)))


def _as_seen(image: Image, view: str) -> Image:
    """Return an image as a view shows it."""
    if view == "blurred":
        return image.filter(ImageFilter.GaussianBlur(max(1.0, _BLUR_SHARE * max(image.size))))
    return image if view == IMAGE else new_image("RGB", image.size, _GREY)


def are_questions(items: pa.Table) -> pa.Array:
    """Return a mask of the rows of `items` that are good and have no responses."""
    return pa.array([is_question(item) for item in items.select(["error", "responses"]).to_pylist()], pa.bool_())


def _questions(tables: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = tables["items"].filter(are_questions(tables["items"])).to_pylist()
    return items


def _question_ids(tables: Mapping[str, pa.Table]) -> Iterable[str]:
    return (item["item_id"] for item in _questions(tables))


def run(context: RunContext) -> Counts:
    """Ask every pending responder, side by side in a pool each."""
    settings, ingested = context.settings, context.ingested
    jobs = [
        PoolJob(
            name=table,
            processor=RespondProcessor.of(settings, responder := _responder(settings, table)),
            sources={"items": ingested.questions, "images": ingested.images, "borrowed": ingested.borrowed},
            target=context.table(table),
            pool=responder.pool,
            key="item_id",
            identity=("view", "prompt", "sample"),
            expected_keys=_question_ids,
            request=("view", "prompt", "sample"),
            earlier=context.earlier(table, context.table(table)),
        )
        for table in context.pending
    ]
    return context.run_pools(jobs)


def members(settings: Settings) -> list[str]:
    """Return the names of the responders."""
    return [responder.name for responder in settings.respond.models]


def _responder(settings: Settings, table: str) -> Responder:
    name = table.removeprefix("respond/")
    return next(responder for responder in settings.respond.models if responder.name == name)


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what a responder's answers depend on, apart from the questions."""
    del root
    responder = _responder(settings, table)
    facts = {
        "version": VERSION,
        "weights": weights_fingerprint(responder.path, responder.revision),
        **responder.model_dump(include={"name", "engine", "dtype", "max_model_len"}),
        **responder.model_dump(include={"max_tokens", "temperature", "top_p"}),
        **pixel_inputs(settings),
        **responder.computation,
    }
    asks = {"prompts": responder.prompts, "samples": responder.samples}
    asks["negatives"] = settings.respond.negatives.model_dump()
    return {"responder": facts, "seed": settings.seed, "asks": asks}


def row_facts(cause: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an answer depends on: not how many there are."""
    return {name: value for name, value in without_inputs(cause).items() if name != "asks"}


def reservations(settings: Settings) -> list[Reservation]:
    """Return what the pools reserve."""
    return [
        for_pool(f"respond/{responder.name}", f"respond.models.{n}.pool", responder.pool)
        for n, responder in enumerate(settings.respond.models)
    ]


def models(settings: Settings, table: str) -> list[LoadedModel]:
    """Return the responder of a table."""
    responder = _responder(settings, table)
    return [in_pool(f"respond.models.{settings.respond.models.index(responder)}", responder)]


STAGE = Stage(
    name="respond",
    members=members,
    inputs=reads("ingest"),
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    reservations=reservations,
    models=models,
    retryable="respond",
    row_facts=row_facts,
    contents=PARTS,
)
