"""The vision-language architectures that training serves, by the `model_type` of their models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from carevl.errors import UserError
from carevl.models.families import qwen2_vl
from carevl.models.families.base import Family
from carevl.models.locate import locate
from carevl.settings.registry import Registry

FAMILIES: Registry[Family] = Registry("vision family", Family, qwen2_vl.FAMILIES)


def find_family(model_type: str) -> Family:
    """Return the family of an architecture.

    Raises:
        UserError: none serves it.
    """
    if model_type not in FAMILIES:
        raise UserError(f"{model_type} is no vision architecture that can be trained: those are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def family_of(model: Any) -> Family:
    """Return the family of a model of transformers; errors as for `find_family`."""
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
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(path, "config.json", revision=revision)
    except HFValidationError:  # neither a directory nor a hub id: whoever loads it says so
        return None
    return Path(cached) if isinstance(cached, str) else None
