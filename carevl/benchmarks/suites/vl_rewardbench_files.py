"""Result files of VL-RewardBench that lmms-eval and VLMEvalKit write.

Both show the second response first where the characters of the two responses are odd in number. lmms-eval looks for the
official expression, asks a language model where it does not match, and draws a number where that fails too; VLMEvalKit
always asks a language model. Here the official expression alone reads the texts, and what it does not match is no
verdict. Their figure is the mean of the groups, `macro`.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from carevl.benchmarks.layouts import FileAnswer, Layout, RowIndex
from carevl.benchmarks.rows import Record, Row

_ORDERS = ((0, 1), (1, 0))


def _read_lmms_eval(records: Iterable[Record], rows: RowIndex) -> Iterator[FileAnswer]:
    """Yield the text, or the texts of several draws, in `filtered_resps`.

    A sample keeps no fields of its row but the id: the prompt, in `input`, has the responses in the order shown, which
    tells rows with one id apart.
    """
    for record in records:
        prompt = record.text("input")
        native_id = record.nested("vlreward_score").get("question_id")
        shown = {row.key: order for row in rows.with_id(native_id) for order in _ORDERS if _shows(prompt, row, order)}
        row = rows.only([row for row in rows.with_id(native_id) if row.key in shown], record)
        if row is not None:
            drawn = isinstance(record.get("filtered_resps"), list)
            for text in record.texts("filtered_resps") if drawn else [record.text("filtered_resps")]:
                yield FileAnswer(row, shown[row.key], text)


def _shows(prompt: str, row: Row, order: tuple[int, ...]) -> bool:
    first, second = (row.responses[i] for i in order)
    return f"Answer 1: {first}\n\nAnswer 2: {second}\n" in prompt


def _read_vlmevalkit(records: Iterable[Record], rows: RowIndex) -> Iterator[FileAnswer]:
    """Yield the text in `prediction`.

    A row is told by question and responses, its n-th repetition in the file being the n-th among the rows: `index` is
    the harness's own number.
    """
    of_texts: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows.rows:
        of_texts[row.question, *sorted(row.responses)].append(row)
    seen: Counter[tuple[str, ...]] = Counter()
    for record in records:
        responses = _responses(record)
        texts = (record.text("question"), *sorted(responses))
        candidates = of_texts[texts]
        if seen[texts] < len(candidates):
            row = candidates[seen[texts]]
            swapped = sum(map(len, responses)) % 2
            shown = responses[::-1] if swapped else responses
            first = row.responses.index(shown[0])
            yield FileAnswer(row, (first, 1 - first), record.text("prediction"))
        seen[texts] += 1


def _responses(record: Record) -> tuple[str, ...]:
    """Return the two responses, which a TSV file has as Python writes a list."""
    value = record.get("response")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"{record.location}: response must be a list, found {value!r:.80}") from error
    responses = Record({"response": value}, record.location).texts("response")
    if len(responses) != 2:
        raise ValueError(f"{record.location}: expected 2 responses, found {len(responses)}")
    return responses


LMMS_EVAL = Layout(
    "lmms-eval samples (--log_samples)", ("doc_id", "input", "filtered_resps", "vlreward_score"), _read_lmms_eval
)
VLMEVALKIT = Layout(
    "VLMEvalKit predictions (PRED_FORMAT=tsv or json)",
    ("index", "question", "response", "prediction"),
    _read_vlmevalkit,
)
