"""The Arrow schema of every table that passes between stages."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

ERROR = pa.struct([("stage", pa.string()), ("kind", pa.string()), ("message", pa.string())])
"""Why a row is not whole: the stage that failed, a kind to count by, and a message for people. Null in a good row."""

CONTAMINATED = "contaminated"
"""The kind of error of an item that a benchmark shares: nothing failed, the item is set aside and counted apart."""

ITEM_SOURCE = pa.struct(
    [
        ("source", pa.string()),  # name of the source in the settings
        ("format", pa.string()),  # name of the preference format; null when none was found
        ("locator", pa.string()),  # FILE#ROW, rows counted from 0; FILE#ROW for the place where a file broke off
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
"""One row per distinct image file."""

ITEMS = pa.schema(
    [
        ("item_id", pa.string()),  # key: SHA-256 of image_id, question and responses; of the locator in a row not read
        ("image_id", pa.string()),  # key into images; null when an error row has no image bytes
        ("question", pa.string()),  # without <image> tags; null in an error row, but kept in a contaminated one
        ("responses", pa.list_(pa.string())),  # 2..n, ordered by the hash of their text; null as question is
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

CAPTIONS = pa.schema(
    [
        ("image_id", pa.string()),  # key, with view
        ("view", pa.string()),  # name of the prompt or captioner that this caption is from
        ("captioner", pa.string()),  # model, as the settings name it
        ("text", pa.string()),  # null in a row whose image could not be read
        ("tokens", pa.int32()),  # tokens generated
        ("error", ERROR),
    ]
)
"""One row per distinct image and view."""

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


JUDGMENTS = pa.schema(
    [
        ("item_id", pa.string()),  # key, with task, order and sample
        ("task", pa.string()),  # pairwise, pointwise, ranking, or answer: to the bare question
        ("order", pa.list_(pa.int32())),  # indices of the responses in the order shown
        ("sample", pa.int32()),  # number of the draw, from 0
        ("text", pa.string()),  # what the judge wrote
        ("evidence", pa.string()),  # the part before the verdict
        ("winner", pa.int32()),  # pairwise: response index; null when unparsed
        ("rating", pa.int32()),  # pointwise: 1 to 5; null when unparsed
        ("ranking", pa.list_(pa.int32())),  # ranking: response indices, best first; null when unparsed
        ("status", pa.string()),  # ok, none (no verdict), both (contradicting verdicts) or truncated
        ("tokens", pa.int32()),  # tokens generated
        ("error", ERROR),  # the engine failed at this prompt; then nothing else but the key is there
    ]
)
"""One row per prompt and draw."""

DEMONSTRATIONS = pa.schema(
    [
        ("item_id", pa.string()),  # key, with task and order
        ("task", pa.string()),
        ("order", pa.list_(pa.int32())),
        ("prompt", pa.string()),  # the judging prompt, without the image
        ("text", pa.string()),  # the judgment to imitate
        ("evidence", pa.bool_()),  # whether it has evidence; else it is a bare verdict
    ]
)
"""Targets of phase 1."""

PAIRS = pa.schema(
    [
        ("item_id", pa.string()),  # key, with order and rank
        ("order", pa.list_(pa.int32())),  # of the prompt that chosen and rejected share
        ("rank", pa.int32()),  # 0 is the pair with the widest gap of its prompt
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("winner", pa.int32()),  # response index that chosen prefers
        ("score_chosen", pa.float32()),
        ("score_rejected", pa.float32()),
    ]
)
"""Chosen and rejected judgments of phase 2."""


def row_error(stage: str, kind: str, message: str) -> dict[str, str]:
    """An error as ERROR stores it."""
    return {"stage": stage, "kind": kind, "message": message}


def failures(errors: pa.ChunkedArray) -> int:
    """How many rows of a column `error` failed; contaminated rows are set aside and did not fail."""
    kinds = pc.struct_field(errors, "kind").to_pylist() if errors.type != pa.null() else []
    return sum(kind is not None and kind != CONTAMINATED for kind in kinds)
