"""The Arrow schema of every table that is written: between stages, by benchmarks, for experts and for training."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

ERROR = pa.struct([("stage", pa.string()), ("kind", pa.string()), ("message", pa.string())])
"""Why a row is not whole: the stage that failed, a kind to count by, and a message for people. Null in a good row."""

CONTAMINATED = "contaminated"
"""The kind of error of an item that a benchmark shares: nothing failed, the item is set aside and counted apart."""
ALIKE = "alike"
"""The kind of error of a question whose answers are all alike: nothing failed, there is nothing to compare."""
SET_ASIDE = (CONTAMINATED, ALIKE)

ITEM_SOURCE = pa.struct(
    [
        ("source", pa.string()),  # name of the source in the settings
        ("format", pa.string()),  # name of the preference format; null when none was found
        ("locator", pa.string()),  # FILE#ROW, or FILE#ROW.PIECE of a divided row: file relative to the source, from 0
        ("preference", pa.list_(pa.float64())),  # this source's own, aligned with the item's responses; null: unknown
        ("extra", pa.string()),  # JSON object of the row's other facts (ids, models, captions); null in an error row
    ]
)
"""Where an item came from. The lengths of all items' `sources` add up to the number of source rows."""

IMAGES = pa.schema(
    [
        ("image_id", pa.string()),  # key: SHA-256 of the original bytes, 64 hexadecimal digits
        ("bytes", pa.large_binary()),  # the original file, never re-encoded; null in an error row
        ("format", pa.string()),  # JPEG, PNG, WEBP, GIF, BMP or TIFF, by content
        ("width", pa.int32()),  # pixels, EXIF orientation applied
        ("height", pa.int32()),  # pixels, EXIF orientation applied
        ("error", ERROR),
    ]
)
"""One row per distinct image file; in the table `borrowed`, per image and part whose items show it from elsewhere."""

TURNS = pa.list_(pa.struct([("role", pa.string()), ("text", pa.string()), ("places", pa.list_(pa.int32()))]))
"""Turns of a conversation: user or assistant, and the characters of the text before which an image stands."""

ITEMS = pa.schema(
    [
        ("item_id", pa.string()),  # key: SHA-256 of all that is asked and answered; in an error row of its place
        ("images", pa.list_(pa.string())),  # image_ids in the order in which they stand in turns and question
        ("places", pa.list_(pa.int32())),  # characters of the question before which an image stands
        ("turns", TURNS),  # before the question
        ("question", pa.string()),  # without <image> tags; null in an error row, but kept in a contaminated one
        (
            "responses",
            pa.list_(pa.string()),
        ),  # 2..n, ordered by the hash of their text; of a question none; null as it is
        ("source_preference", pa.list_(pa.float64())),  # one per response, higher is better; null: unknown or disputed
        ("gold", pa.list_(pa.float64())),  # the same from sources declared as labels; null: none or disputed
        ("conflict", pa.bool_()),  # whether two sources prefer opposite responses of some pair
        ("sources", pa.list_(ITEM_SOURCE)),  # every source row of the item, ordered by source and locator
        ("split", pa.string()),  # of the first source with a label, else of the first source
        ("group", pa.string()),  # group of a benchmark's item; null in preference data
        ("error", ERROR),
    ]
)
"""One row per distinct item, and one per source row that could not be read."""

RGB = pa.struct([("width", pa.int32()), ("height", pa.int32()), ("pixels", pa.large_binary())])
"""A decoded image: rows of pixels from the top, 3 bytes each."""

ANSWERS = pa.schema(
    [
        ("item_id", pa.string()),  # key, with model, view, prompt and sample; of the question
        ("model", pa.string()),  # name of the responder in the settings
        ("view", pa.string()),  # image, blurred or blank: what the model was shown
        ("prompt", pa.string()),  # as in the settings, the question not filled in
        ("sample", pa.int32()),  # number of the draw, from 0
        ("text", pa.string()),
        ("tokens", pa.int32()),  # tokens generated
        ("truncated", pa.bool_()),  # whether it was cut at the most tokens
        ("error", ERROR),  # the engine failed at this prompt; then nothing else but the key is there
    ]
)
"""One row per question, model, prompt and draw: what models answer where a source has no responses."""

WRITERS = pa.schema(
    [
        ("item_id", pa.string()),  # key, with response and the fields after it; of the item that came of the question
        ("response", pa.int32()),  # index
        ("kind", pa.string()),  # answer; a negative: other, blurred or blank; own: of a function of the settings
        ("model", pa.string()),  # null of what no model wrote
        ("prompt", pa.string()),
        ("sample", pa.int32()),
        ("question", pa.string()),  # item_id of the question that it answers
    ]
)
"""Who wrote a response: one row per draw that was made one with it."""

CAPTIONS = pa.schema(
    [
        ("image_id", pa.string()),  # key, with view; of a caption of a whole video, the SHA-256 of its frames' ids
        ("view", pa.string()),  # name of the prompt or captioner that this caption is from
        ("captioner", pa.string()),  # model, as the settings name it
        ("text", pa.string()),  # null in a row whose image could not be read
        ("tokens", pa.int32()),  # tokens generated
        ("error", ERROR),
    ]
)
"""One row per distinct image and view."""

SUBJECTS = pa.schema([("image_id", pa.string()), ("images", pa.list_(pa.string()))])
"""Where videos have one caption each, below the captions: the key of every caption, and the images that it is of."""

BORROWED_CAPTIONS = pa.schema([CAPTIONS.field(name) for name in ("image_id", "view", "text")])
"""One row per image of the table `borrowed`, and view; no text where its caption has an error."""

SCORES = pa.schema(
    [
        ("item_id", pa.string()),  # key, with expert and view
        ("expert", pa.string()),  # name of the expert in the settings
        ("view", pa.string()),  # of the caption that the expert read; `none`: it read no caption
        ("scores", pa.list_(pa.float32())),  # raw score of each response, higher is better; null in an error row
        (
            "caption_read",
            pa.float32(),
        ),  # share of the caption's characters that was read, 1 unless shortened; null: none
        ("error", ERROR),
    ]
)
"""One row per item, expert and view."""

EXPERT_TOKENS = pa.schema([("ids", pa.list_(pa.list_(pa.int32()))), ("types", pa.list_(pa.list_(pa.int32())))])
"""Token ids and types of the responses, one row for everything that an expert is asked."""

ROUTES = pa.schema(
    [
        ("item_id", pa.string()),  # key, with first and second
        ("first", pa.int32()),
        ("second", pa.int32()),
        ("route", pa.dictionary(pa.int8(), pa.string())),  # high, low or dropped
        ("winner", pa.int32()),  # response index, -1 for a tie, null when unknown
        ("probability", pa.float32()),
        ("agreement", pa.float32()),
        ("stability", pa.float32()),
        ("no_caption_margin", pa.float32()),
        ("source_agreement", pa.float32()),
        ("length_difference", pa.int32()),  # in characters
        ("reason", pa.dictionary(pa.int8(), pa.string())),  # why it was routed there, see `confidence.routing.REASONS`
    ]
)
"""One row per pair of responses of an item."""

JUDGMENTS = pa.schema(
    [
        ("item_id", pa.string()),  # key, with task, order and sample
        ("task", pa.string()),  # pairwise, pointwise, ranking, or answer: to the bare question
        ("order", pa.list_(pa.int32())),  # indices of the responses in the order shown
        ("sample", pa.int32()),  # number of the draw, from 0
        ("text", pa.string()),  # what the judge wrote
        ("evidence", pa.string()),  # the part before the verdict
        ("winner", pa.int32()),  # pairwise: response index; null when unparsed
        ("rating", pa.float32()),  # pointwise: 1 to 5; null when unparsed
        ("ranking", pa.list_(pa.int32())),  # ranking: response indices, best first; null when unparsed
        ("status", pa.string()),  # ok, none (no verdict), both (contradicting verdicts) or truncated
        ("tokens", pa.int32()),  # tokens generated
        ("error", ERROR),  # the engine failed at this prompt; then nothing else but the key is there
    ]
)
"""One row per prompt and draw."""

TARGETS = pa.schema(
    [
        ("item_id", pa.string()),  # key, with task and order
        ("task", pa.string()),
        ("order", pa.list_(pa.int32())),
        ("prompt", pa.string()),  # the judging prompt, without the images
        ("places", pa.list_(pa.int32())),  # characters of the prompt before which an image stands
        ("text", pa.string()),  # the judgment to imitate
        ("evidence", pa.bool_()),  # whether it has evidence; else it is a bare verdict
    ]
)
"""Targets of phase 1."""

PAIRS = pa.schema(
    [
        ("item_id", pa.string()),  # key, with task, order and rank
        ("order", pa.list_(pa.int32())),  # of the prompt that chosen and rejected share
        ("rank", pa.int32()),  # 0 is the pair with the widest gap of its prompt
        ("prompt", pa.string()),
        ("places", pa.list_(pa.int32())),  # as in targets
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("winner", pa.int32()),  # response index that chosen prefers
        ("score_chosen", pa.float32()),
        ("score_rejected", pa.float32()),
        ("task", pa.string()),
        ("loser", pa.int32()),  # the response that chosen prefers it to; with pointwise one of both is shown
    ]
)
"""Chosen and rejected judgments of phase 2."""

TRAINING_ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("phase", pa.string()),
        ("image", pa.string()),  # names of the images that are shown, joined by `+`; null: none
        ("prompt", pa.string()),
        ("places", pa.list_(pa.int32())),  # of images in the prompt
        ("turns", TURNS),  # before the prompt
        ("prefix", pa.list_(pa.int32())),
        ("branches", pa.list_(pa.list_(pa.int32()))),
        ("weights", pa.list_(pa.list_(pa.float32()))),
        ("reference", pa.list_(pa.float64())),
    ]
)
"""Encoded rows of training: one per prompt, with its branches and the weight of each token of them."""

TRAINING_IMAGES = pa.schema([("image", pa.string()), ("bytes", pa.large_binary())])
"""The image files that training items name."""

_PREDICTION_FIELDS: tuple[tuple[str, pa.DataType, bool, str], ...] = (
    ("benchmark", pa.string(), False, "id of the benchmark, such as vl-rewardbench"),
    ("protocol", pa.string(), False, "official, official_scorer, strict, verdict_prob or pointwise"),
    ("judge", pa.string(), False, "the judge's name: a directory, a hub id, an endpoint, or a trivial judge"),
    ("key", pa.string(), False, "key of the row within the benchmark"),
    ("order", pa.list_(pa.int32()), False, "indices of the responses in the order shown"),
    ("sample", pa.int32(), False, "number of the draw, from 0"),
    ("prompt_hash", pa.string(), False, "first 16 hex digits of the SHA-256 of the prompt"),
    ("text", pa.string(), False, "what the judge wrote; empty for a reward model"),
    ("winner", pa.int32(), True, "response index of the row, -1 for a tie, null when unparsed or not pairwise"),
    ("ranking", pa.list_(pa.int32()), True, "response indices, best first; null when unparsed or not a ranking"),
    (
        "rating",
        pa.float64(),
        True,
        "1 to 5 (a mean under `pointwise`), or a reward model's raw score; null when unparsed or no rating",
    ),
    ("status", pa.string(), False, "ok, none (no verdict), both (contradicting verdicts) or truncated"),
    ("probability", pa.float64(), True, "P(winner is the lower response index), from the verdict token; may be null"),
    ("error", ERROR, True, "why the judge could not be asked, null if it was; such a row counts as without a verdict"),
    (
        "reasoning",
        pa.string(),
        True,
        "what an endpoint returned of the judge's thoughts, apart from the text; may be null",
    ),
    ("forced", pa.bool_(), True, "whether the judgment was cut, and its verdict asked for apart; null: no"),
    ("tie", pa.bool_(), True, "whether the judgment states a tie, whatever the protocol makes of it; null: not known"),
    ("question_id", pa.string(), True, "SHA-256 of the question and of the images that it shows; null: not known"),
)

PREDICTIONS = pa.schema(
    [pa.field(name, kind, nullable, {"description": text}) for name, kind, nullable, text in _PREDICTION_FIELDS]
)
"""Key: benchmark, protocol, judge, key, order, sample. Each field carries its description as metadata."""

QUESTIONS = pa.schema(
    [
        *(PREDICTIONS.field(name) for name in ("benchmark", "protocol", "key", "order", "sample", "question_id")),
        ("task", pa.string()),
        ("prompt", pa.string()),
        ("images", pa.list_(pa.string())),  # keys into images, in their order; empty for a text-only question
        ("places", pa.list_(pa.int32())),  # characters of the prompt before which they stand; empty: before its words
        ("response", pa.string()),  # what a reward model has to score, else null
        ("responses", pa.list_(pa.string())),  # what a judge that sees the image has to score, as shown; else empty
        ("wording", pa.string()),  # the judge's own of a verdict, else null
    ]
)
"""Questions to judges; a part holds a block of them."""

QUESTION_IMAGES = pa.schema([("name", pa.string()), ("bytes", pa.large_binary()), ("error", pa.string())])
"""The image files that questions name; `error` says why there is none to show."""


def row_error(stage: str, kind: str, message: str) -> dict[str, str]:
    """Return an error as ERROR stores it."""
    return {"stage": stage, "kind": kind, "message": message}


def failures(errors: pa.ChunkedArray) -> int:
    """Return how many rows of a column `error` failed; those of the kinds SET_ASIDE did not."""
    kinds = pc.struct_field(errors, "kind").to_pylist() if errors.type != pa.null() else []
    return sum(kind is not None and kind not in SET_ASIDE for kind in kinds)
