"""`carevl miniworld demo`: a drawn world, and the base judge at work on a few of its pairs."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from carevl.inference.transformers_engine import Ask, ImageTextGenerator
from carevl.judging.prompts import judge_prompt, parse_judgment
from carevl.miniworld.publish import publish
from carevl.miniworld.quality import MAX_TOKENS
from carevl.miniworld.weights import WEIGHTS

ITEMS, SEED = 400, 7


def show(out: Path, n_pairs: int, say: Callable[[str], None]) -> None:
    """Draws a world under `out` unless one is there, and prints judgments of its first dev pairs in both orders."""
    started = time.monotonic()
    world = out / "world"
    if (world / "world.json").exists():
        say(f"world: {world} is there already")
    else:
        publish(world, ITEMS, SEED)
        say(f"world: {ITEMS} training items and their splits drawn to {world}, {time.monotonic() - started:.1f} s")
    file = world / "dev" / "vl_rewardbench.parquet"
    rows = pq.read_table(file).slice(0, n_pairs).to_pylist()
    generator = ImageTextGenerator(WEIGHTS / "judge")
    images = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    asked = [(row, image, order) for row, image in zip(rows, images, strict=True) for order in ([0, 1], [1, 0])]
    asks = [Ask(image, judge_prompt("pairwise", row["query"], row["response"], order)) for row, image, order in asked]
    judgments = generator.generate(asks, max_tokens=MAX_TOKENS)
    right = 0
    for (row, _, order), made in zip(asked, judgments, strict=True):
        verdict = parse_judgment(made.text, "pairwise", order, truncated=made.truncated)
        if order == [0, 1]:
            say(f"\n{row['id']}  {row['query']}")
            for i, response in enumerate(row["response"]):
                say(f"  {'better' if row['human_ranking'][i] == 0 else 'worse '}  {response}")
        good = verdict.winner is not None and row["human_ranking"][verdict.winner] == 0
        right += good
        shown = "as listed" if order == [0, 1] else "swapped  "
        say(f"  base judge, {shown}: {'right' if good else 'wrong'}  | {' '.join(made.text.split())}")
    say(
        f"\nbase judge, before CAREVL: {right} of {len(asked)} verdicts right, {time.monotonic() - started:.0f} s. "
        "Its measured quality: carevl miniworld quality"
    )
