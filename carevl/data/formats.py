"""The registry of preference formats, and which of them a table's columns call for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from carevl.data import readers
from carevl.data.rows import Preference, Row, kind_of


class UnknownFormatError(ValueError):
    """No format fits the columns, or none has the name; the message shows what was found and what comes closest."""


@dataclass(frozen=True)
class Format:
    """A public preference format: the columns it is known by, and its reader."""

    name: str
    columns: Mapping[str, str]
    """Column to the types it may have. `image|img_path` stands for either column, `list|struct` for either type."""
    read: Callable[[Row], Preference]

    def lacking(self, found: Mapping[str, str]) -> list[str]:
        """The expected columns that are absent or of another type, in words. `found` is as from `columns_of`."""
        return [
            f"`{names}`" if kinds == _ANY else f"`{names}` ({kinds})"
            for names, kinds in self.columns.items()
            if not any(_fits(found[name], kinds) for name in names.split("|") if name in found)
        ]


_ANY = "any"
_IMAGES = {"images|image": _ANY}
_PAIR = {"chosen": "text", "rejected": "text"}
_ORIGIN = {"ds_name|origin_dataset": "text"}

FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        Format(
            "vlfeedback", {"prompt": "text", "completions": "list|struct", "image|img_path": _ANY}, readers.vlfeedback
        ),
        Format("rlaif-v", {"image": _ANY, "question": "text", **_PAIR, **_ORIGIN}, readers.rlaif_v),
        Format("rlhf-v", {"image": _ANY, "text": "text|struct", **_ORIGIN}, readers.rlhf_v),
        Format("mm-rlhf", {"image|images|video": _ANY, "prompt": "text", **_PAIR}, readers.mm_rlhf),
        Format("povid", {"image": _ANY, "conversations": "list", "rejected_conversations": "list"}, readers.povid),
        Format("spa-vl", {"image": _ANY, "question": "text", **_PAIR}, readers.spa_vl),
        Format(
            "llava-rlhf",
            {
                "image": _ANY,
                "conversations": "list",
                "output_1": "struct|text",
                "output_2": "struct|text",
                "preference": "number",
            },
            readers.llava_rlhf,
        ),
        Format("trl", {**_IMAGES, "chosen": "list", "rejected": "list"}, readers.trl),
        Format(
            "llamafactory-sharegpt",
            {**_IMAGES, "conversations": "list", "chosen": "struct", "rejected": "struct"},
            readers.llamafactory_sharegpt,
        ),
        Format("llamafactory-alpaca", {**_IMAGES, "instruction": "text", **_PAIR}, readers.llamafactory_alpaca),
        Format(
            "ms-swift",
            {**_IMAGES, "messages": "list", "rejected_response|rejected_messages": "text|list"},
            readers.ms_swift,
        ),
        Format("items", {"image": _ANY, "question": "text", "responses": "list"}, readers.items),
    )
}
"""Every known format by name."""


def columns_of(rows: Iterable[Row]) -> dict[str, str]:
    """Column to type over these rows, the first type that is not null."""
    found: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if found.get(name, "null") == "null":
                found[name] = kind_of(value)
    return found


def format_named(name: str) -> Format:
    """The format of that name. Raises UnknownFormatError that lists the known names."""
    if name not in FORMATS:
        raise UnknownFormatError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def detect(found: Mapping[str, str]) -> Format:
    """The format that expects the most of these columns and lacks none.

    Args:
        found: column to type, as from `columns_of`.

    Raises:
        UnknownFormatError: every format lacks a column; the message shows the columns and the closest format.
    """
    lacking = {known.name: known.lacking(found) for known in FORMATS.values()}
    fitting = [known for known in FORMATS.values() if not lacking[known.name]]
    if fitting:
        return max(fitting, key=lambda known: len(known.columns))
    closest = max(FORMATS.values(), key=lambda known: 1 - len(lacking[known.name]) / len(known.columns))
    shown = ", ".join(f"{name} ({kind})" for name, kind in list(found.items())[:40]) or "none"
    raise UnknownFormatError(
        f"no known format has these columns: {shown[:1000]}. Closest is {closest.name}, which also needs "
        f"{', '.join(lacking[closest.name])}. Rename the columns or set the source's format to one of "
        f"{', '.join(FORMATS)}"
    )


def _fits(kind: str, kinds: str) -> bool:
    return kind == "null" or kinds == _ANY or kind in kinds.split("|")
