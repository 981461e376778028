"""The vision-language architectures that have been tried, by the `model_type` of their models.

One class serves all. What a row says of an architecture is measured by tests/training/family_table.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from carevl.errors import UserError
from carevl.models.families import paligemma
from carevl.models.families.base import Family
from carevl.models.hub import find_config
from carevl.models.locate import locate
from carevl.settings.registry import Registry

_EMBEDDED = (
    "aya_vision",
    "cohere2_vision",
    "deepseek_vl",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "idefics3",
    "internvl",
    "llava",  # Pixtral among them
    "llava_next",
    "llava_onevision",
    "mistral3",
    "qwen2_vl",
    "qwen2_5_vl",
    "smolvlm",
    "vipllava",
)
_MORE_THAN_EMBEDDED = (
    "gemma3",  # image tokens see each other
    "gemma4",  # so do these, and every layer has inputs of its own
    "ovis2",  # its indicator tokens have embeddings of the vision tower
    "qwen3_vl",  # the first layers get features of their own
    "qwen3_vl_moe",
)
_ALONE = (
    "llama4",  # chunks of attention are counted from the row's beginning
    "mllama",  # its layers attend to the images of the whole row
)
_WITH_STATE = ("lfm2_vl", "qwen3_5", "qwen3_5_moe")
_ONE_SIZE = ("minicpmv4_6",)  # with a state as well; it takes all images of a batch for as large as the first

FAMILIES: Registry[Family] = Registry(
    "vision family",
    Family,
    (
        *(Family(name, joins=True, mixes_sizes=True, embeds=True) for name in _EMBEDDED),
        *(Family(name, joins=True, mixes_sizes=True) for name in _MORE_THAN_EMBEDDED),
        *(Family(name, mixes_sizes=True) for name in (*_ALONE, *_WITH_STATE)),
        *map(Family, _ONE_SIZE),
        *paligemma.FAMILIES,
    ),
)


def find_family(model_type: str) -> Family:
    """Return the family of an architecture; one that nobody has tried is taken for the most difficult there is."""
    return FAMILIES[model_type] if model_type in FAMILIES else Family(model_type)


def family_of(model: Any) -> Family:
    """Return the family of a model of transformers."""
    return find_family(model.config.model_type)


def judge_family(path: str, revision: str | None = None) -> Family | None:
    """Return the family of a judge, from its config.json alone; nothing is loaded and nothing is fetched.

    Args:
        path: as in the settings: a directory, a hub id, or a path with a scheme.

    Returns:
        None for a hub model whose config.json is not on this machine.

    Raises:
        UserError: no family serves its architecture, its configuration is broken, or the directory holds no model.
    """
    file = _config_file(path, revision)
    if file is None:
        return None
    try:
        return find_family(str(json.loads(file.read_text(encoding="utf-8"))["model_type"]))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} names no model_type: it is no configuration of a model") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _config_file(path: str, revision: str | None) -> Path | None:
    directory = Path(locate(path, revision))
    if directory.is_dir():
        return directory / "config.json"
    return find_config(path, revision)
