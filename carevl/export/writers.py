"""Writers of public training formats. Each makes one file per split, which `datasets` loads.

| format | file | images |
|---|---|---|
| trl | `SPLIT.parquet`: `images`, `prompt`, and `chosen` and `rejected`, or `completion`, in parts | inside |
| llamafactory | `SPLIT.jsonl` in sharegpt form, `dataset_info.json` that names the files | `images/` |
| ms-swift | `SPLIT.jsonl`: `messages`, `rejected_response`, `images` | `images/` |

Where models were asked for the responses, `written_by` says which of them wrote what. Image files keep their bytes.
Their paths are relative to the directory that is written. Names of files come out of rows, and none leads out of that
directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from carevl.data.turns import IMAGE_TAG
from carevl.errors import UserError
from carevl.export.examples import Example, Part
from carevl.judging.turns import Turn
from carevl.settings.names import path_component

WRITTEN_BY = "written_by"
"""Column with the writers of responses that models were asked for; JSON in Parquet."""
_ENDINGS = {"JPEG": "jpg", "TIFF": "tif"}
_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_PARTS = pa.list_(pa.struct({"type": pa.string(), "text": pa.string()}))
_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": _PARTS}))


class Writer(Protocol):
    """Writes parts into a directory until it is closed."""

    def write(self, part: Part) -> None: ...

    def close(self) -> None: ...


class ExportFiles:
    """The files of an export, by what rows say that they belong to.

    Args:
        ending: of the files of splits, without a dot.
    """

    def __init__(self, out: Path, ending: str) -> None:
        self._out, self._ending = out, ending
        self._splits: dict[str, str] = {}

    def split(self, name: str) -> Path:
        """Return the file of a split.

        Raises:
            UserError: its name is not one part of a path, or that of another one in other letter case.
        """
        file = f"{path_component(name, 'split')}.{self._ending}"
        other = self._splits.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"splits {other!r} and {name!r} differ in letter case alone, which not every file system tells apart; "
                "write them alike in data.sources, and `carevl run` again"
            )
        return self._out / file


class Trl:
    """TRL's conversational preference format, and prompt-completion for judgments, as Parquet."""

    def __init__(self, out: Path) -> None:
        self._paths = ExportFiles(out, "parquet")
        self._files: dict[str, pq.ParquetWriter] = {}

    def write(self, part: Part) -> None:
        """Append the part's examples to their splits' files."""
        by_split: dict[str, list[dict[str, Any]]] = {}
        for example in part.examples:
            files = [(name, *part.images[name]) for name in example.images]
            images = [{"bytes": data, "path": _file_name(name, kind)} for name, data, kind in files]
            answers = {"chosen": example.chosen, "rejected": example.rejected}
            if example.rejected is None:
                answers = {"completion": example.chosen}
            row = {"id": example.item_id, "images": images, "prompt": [_parts(turn) for turn in example.turns]}
            row |= {name: [_parts(Turn("assistant", answer or ""))] for name, answer in answers.items()}
            row |= {} if example.written_by is None else {WRITTEN_BY: json.dumps(example.written_by)}
            by_split.setdefault(example.split, []).append(row)
        for split, rows in by_split.items():
            schema = _trl_schema(list(rows[0]))
            if split not in self._files:
                self._files[split] = pq.ParquetWriter(self._paths.split(split), schema, compression="zstd")
            self._files[split].write_table(pa.Table.from_pylist(rows, schema), row_group_size=100)

    def close(self) -> None:
        """Finish the files."""
        for file in self._files.values():
            file.close()


def _trl_schema(columns: list[str]) -> pa.Schema:
    """Return the schema with the note by which `datasets` decodes the images."""
    text = {"dtype": "string", "_type": "Value"}
    messages = [{"role": text, "content": [{"type": text, "text": text}]}]
    kinds: dict[str, tuple[Any, pa.DataType]] = {
        "id": (text, pa.string()),
        "images": ([{"_type": "Image"}], pa.list_(_IMAGE)),
        WRITTEN_BY: (text, pa.string()),
    }
    features = {name: kinds.get(name, (messages, _MESSAGES))[0] for name in columns}
    types = {name: kinds.get(name, (messages, _MESSAGES))[1] for name in columns}
    return pa.schema(types, {"huggingface": json.dumps({"info": {"features": features}})})


class _Lines:
    """JSON Lines per split, with the image files beside them."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._paths = ExportFiles(out, "jsonl")
        self._stack = ExitStack()
        self._files: dict[str, TextIO] = {}
        (out / "images").mkdir()

    def write(self, part: Part) -> None:
        """Append the part's examples to their splits' files, and write their images."""
        for example in part.examples:
            images = []
            for name in example.images:
                data, kind = part.images[name]
                images.append(f"images/{_file_name(name, kind)}")
                if not (self._out / images[-1]).exists():
                    (self._out / images[-1]).write_bytes(data)
            if example.split not in self._files:
                file = self._paths.split(example.split).open("w", encoding="utf-8")
                self._files[example.split] = self._stack.enter_context(file)
                self.begin(example)
            written_by = {} if example.written_by is None else {WRITTEN_BY: example.written_by}
            row = {"id": example.item_id, **self.row(example), "images": images, **written_by}
            self._files[example.split].write(json.dumps(row, ensure_ascii=False) + "\n")

    def begin(self, example: Example) -> None:
        """Prepare the split of this example, its first."""

    def row(self, example: Example) -> dict[str, Any]:
        """Return the example's row without its id and images."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish the files."""
        self._stack.close()


class LlamaFactory(_Lines):
    """LLaMA-Factory's sharegpt form: ranking for preferences, a conversation for judgments."""

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self._info: dict[str, Any] = {}

    def begin(self, example: Example) -> None:
        """Note the split's file in dataset_info.json's form."""
        columns = {"messages": "conversations", "images": "images"}
        entry: dict[str, Any] = {"file_name": f"{example.split}.jsonl", "formatting": "sharegpt", "columns": columns}
        if example.rejected is not None:
            entry["ranking"] = True
            columns |= {"chosen": "chosen", "rejected": "rejected"}
        self._info[f"carevl_{example.split}"] = entry

    def row(self, example: Example) -> dict[str, Any]:
        """Return the conversation, and chosen and rejected where there is a preference."""
        names = {"user": "human", "assistant": "gpt"}
        asked = [_turn(names[turn.role], with_tags(turn)) for turn in example.turns]
        if example.rejected is None:
            return {"conversations": [*asked, _turn("gpt", example.chosen)]}
        return {
            "conversations": asked,
            "chosen": _turn("gpt", example.chosen),
            "rejected": _turn("gpt", example.rejected),
        }

    def close(self) -> None:
        """Write dataset_info.json and finish the files."""
        (self._out / "dataset_info.json").write_text(json.dumps(self._info, indent=2) + "\n")
        super().close()


class MsSwift(_Lines):
    """ms-swift: messages, and the rejected response where there is a preference."""

    def row(self, example: Example) -> dict[str, Any]:
        """Return messages that end with the answer."""
        asked = [_message(turn.role, with_tags(turn)) for turn in example.turns]
        messages = [*asked, _message("assistant", example.chosen)]
        rejected = {} if example.rejected is None else {"rejected_response": example.rejected}
        return {"messages": messages, **rejected}


def with_tags(turn: Turn) -> str:
    """Return the text of a turn with a tag for every image that stands in it."""
    return "".join(IMAGE_TAG if part is None else part for part in turn.parts())


def _parts(turn: Turn) -> dict[str, Any]:
    """Return a turn as a message of parts; one that is an image has no text, and is the next in the row's list."""
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in turn.parts()]
    return {"role": turn.role, "content": parts}


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _turn(name: str, value: str) -> dict[str, str]:
    return {"from": name, "value": value}


def _file_name(image_id: str, kind: str) -> str:
    return path_component(f"{image_id}.{_ENDINGS.get(kind, kind.lower())}", "image")


WRITERS: dict[str, Callable[[Path], Writer]] = {"trl": Trl, "llamafactory": LlamaFactory, "ms-swift": MsSwift}
"""Format to its writer."""
