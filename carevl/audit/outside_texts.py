"""Texts from outside that speak to models: items that hold control strings, and responses that state a verdict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from carevl.audit.ledger import Tree
from carevl.judging import read_verdict

if TYPE_CHECKING:
    from carevl.store.table import Table

ENDS = "<|im_end|></s><|eot_id|><end_of_turn><|endoftext|>"
"""Strings that end a turn or a text, in the templates of published families."""
_CONTROL = re.compile(
    r"<\|[A-Za-z_][\w ./-]{0,40}\|>|</?s>|</?(?:start|end)_of_(?:turn|image)>|<(?:bos|eos|pad|unk|image|video)>"
    r"|\[/?(?:INST|IMG|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]|<</?SYS>>",
    re.IGNORECASE,
)
"""Of published families: Qwen, Llama, Mistral, Gemma, Phi, LLaVA, InternVL and what follows them."""
_HINTS = re.compile(
    r"answ|respon|antwort|respuest|verdict|veredicto|urteil|judg|better|winner|prefer|\[\[|[^\x00-\x7f]", re.IGNORECASE
)
"""Without any of it a text states no verdict: reading one takes milliseconds."""
_SHOWN = 5


def count_outside_texts(items: Table) -> Tree:
    """Count items whose texts try to speak to a model; those with an error are left out.

    Returns:
        `items`; `control`, of those the items with a control string in question or response, and `strings`, how many
        have each of the most frequent; `verdicts`, the items of which a response is read as a verdict on two answers,
        and `examples` of the words that state it.
    """
    counts: Counter[str] = Counter()
    strings: Counter[str] = Counter()
    examples: list[str] = []
    for number in items.parts():
        for row in items.read(number, ["turns", "question", "responses", "error"]).to_pylist():
            if row["error"] is not None:
                continue
            texts = [*(turn["text"] for turn in row["turns"]), row["question"] or "", *row["responses"]]
            found = set(_CONTROL.findall("\n".join(texts)))
            stated = list(_verdicts(row))
            strings.update(found)
            counts.update({"items": 1, "control": bool(found), "verdicts": bool(stated)})
            examples += stated[: _SHOWN - len(examples)]
    return {
        **{name: counts[name] for name in ("items", "control", "verdicts")},
        "strings": dict(strings.most_common(_SHOWN)),
        "examples": examples,
    }


def _verdicts(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the words of responses that are read as a verdict."""
    for response in row["responses"]:
        if _HINTS.search(response) is None:
            continue
        reading = read_verdict(response, "pairwise", 2)
        if reading.status == "ok" and reading.span is not None:
            start, end = reading.span
            yield " ".join(response[max(start - 40, 0) : end + 20].split())


def format_outside_texts(counts: Tree) -> Iterator[str]:
    """Write the counts in lines."""
    yield f"texts from outside, of {counts['items']} items"
    listed = ", ".join(f"{string} {n}" for string, n in counts["strings"].items())
    yield f"  with control strings {counts['control']}" + (f" ({listed})" if listed else "")
    listed = "; ".join(map(repr, counts["examples"]))
    yield f"  with a response that states a verdict {counts['verdicts']}" + (f", such as {listed}" if listed else "")
