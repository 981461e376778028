"""Three small sources as people mix them: about one image, about several with turns before the question, about none."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from carevl.miniworld.items import draw_items

N = 24
"""Rows of each."""


def write_judge_set(directory: Path, n: int = 4) -> Path:
    """Write judgments about the pictures of `write_sources`, as a judge's training set has them; return the file."""
    rows = [
        {
            "image": f"pictures/{number}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nIs `Yes {number}` right? Rate it from 1 to 5."},
                {"from": "gpt", "value": f"It says too little. Rating: {number % 5 + 1}"},
            ],
        }
        for number in range(n)
    ]
    file = directory / "critic.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_sources(directory: Path, n: int = N) -> dict[str, Path]:
    """Write the sources, each a file beside its pictures; return their files by name."""
    drawn = list(itertools.islice(draw_items("test", "mixed"), n + 1))
    for number, (image, _) in enumerate(drawn):
        (directory / "pictures").mkdir(parents=True, exist_ok=True)
        image.save(directory / "pictures" / f"{number}.png")
    rows: dict[str, list[dict[str, Any]]] = {"one": [], "several": [], "text": []}
    for number, (_, [item, *_]) in enumerate(drawn[:n]):
        right, wrong = (next(r.text for r in item.responses if r.right == is_right) for is_right in (True, False))
        picture, other = (f"pictures/{k}.png" for k in (number, number + 1))
        question = item.question.text
        pair = {"chosen": right, "rejected": wrong}
        rows["one"].append({"image": picture, "question": question, **pair})
        talk = [
            {"role": "user", "content": "Do you see <image>?"},
            {"role": "assistant", "content": "I do."},
            {"role": "user", "content": f"And <image>? Of the second one: {question}"},
        ]
        answers = {name: [{"role": "assistant", "content": text}] for name, text in pair.items()}
        rows["several"].append({"images": [other, picture], "prompt": talk, **answers})
        words = {"chosen": f"It is {number + 2}, without doubt.", "rejected": f"It is {number + 3}, without doubt."}
        rows["text"].append({"prompt": f"What is {number} and 2?", **words})
    files = {name: directory / f"{name}.jsonl" for name in rows}
    for name, file in files.items():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
    return files
