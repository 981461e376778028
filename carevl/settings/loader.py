"""Settings from a preset or a YAML file, with overrides; and their documentation as YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from carevl.errors import SettingsError, hide_secrets, suggest
from carevl.settings.earlier_versions import take_over
from carevl.settings.tree import Settings

_Tree = TypeVar("_Tree", bound=BaseModel)
PRESETS = Path(__file__).parent / "presets"
_BASE = "preset"
"""Field of a file of settings: the preset whose settings hold where the file says nothing."""
_NAMED = "the presets are {}"


def presets() -> list[str]:
    """Return the names of the presets."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def _ignore(line: str) -> None:
    """Log nothing."""


def load_settings(source: str, overrides: Sequence[str] = (), log: Callable[[str], None] = _ignore) -> Settings:
    """Return the settings of a preset or a YAML file, with `key.path=value` overrides.

    Args:
        log: gets a line for every setting of an earlier version that is read as another one.

    Raises:
        SettingsError: no such preset or file, a line that is no YAML, or a field that is unknown or wrong.
    """
    # Mappings that a YAML file shares by anchors become separate, so that an override changes one place only.
    return fill(Settings, json.loads(json.dumps(_read(source), default=str)), overrides, log)


def fill(
    kind: type[_Tree], tree: dict[str, Any], overrides: Sequence[str], log: Callable[[str], None] = _ignore
) -> _Tree:
    """Return settings of a kind from a tree of values, with `key.path=value` overrides; `log` as in `load_settings`.

    Raises:
        SettingsError: as `load_settings`.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise SettingsError(f"--set {override}: write key=value, for example --set items=64")
        _put(tree, path.split("."), _parse(text, f"--set {path}"))
    for line in take_over(tree):
        log(line)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem, kind) for problem in error.errors())) from None


def _read(source: str) -> dict[str, Any]:
    file = PRESETS / f"{source}.yaml" if source in presets() else Path(source)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = suggest(source, presets(), _NAMED.format(", ".join(presets())), kind="the preset ")
        raise SettingsError(f"cannot read settings {source}: {error}; {hint}") from None
    tree = _parse(text, source)
    if not isinstance(tree, dict):
        raise SettingsError(f"{source} holds no settings; see `carevl settings mini`")
    if (name := tree.pop(_BASE, None)) is None:
        return tree
    if name not in presets():
        raise SettingsError(f"{source}: {_BASE}: {suggest(str(name), presets(), _NAMED.format(', '.join(presets())))}")
    return _merge(_read(name), tree)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a tree with the fields of another one in place of its own; lists are replaced whole."""
    merged = dict(base)
    for name, value in changes.items():
        own = merged.get(name)
        merged[name] = _merge(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return merged


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{origin} is not YAML: {' '.join(str(error).split())}") from None


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    node: Any = tree
    for key in path[:-1]:
        if isinstance(node, list):
            node = _element(node, key, path)
        elif isinstance(node, dict):
            node = node.setdefault(key, {})
    if isinstance(node, dict):
        node[path[-1]] = value
    elif isinstance(node, list):
        _element(node, path[-1], path)
        node[int(path[-1])] = value
    else:
        raise SettingsError(f"--set {'.'.join(path)}: {'.'.join(path[:-1])} is a value and has no fields")


def _element(node: list[Any], key: str, path: list[str]) -> Any:
    if not key.isdigit() or int(key) >= len(node):
        raise SettingsError(f"--set {'.'.join(path)}: {key} is no index of a list of {len(node)}")
    return node[int(key)]


def _explain(problem: Any, kind: type[BaseModel]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        value = "" if isinstance(problem["input"], dict) else f" (found {hide_secrets(repr(problem['input']))})"
        near = ""
        if problem["type"] == "literal_error":
            choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            near = suggest(str(problem["input"]), choices, "")
        said = problem["msg"].removeprefix("Value error, ")
        return f"{place and place + ': '}{said}{value}{near and '; ' + near}"
    *branch, name = problem["loc"]
    names = list(_model_at(branch, kind).model_fields)
    hint = suggest(str(name), names, f"the fields here are {', '.join(names)}", cutoff=0.5)
    return f"{place}: there is no such setting; {hint}"


def _model_at(branch: Sequence[Any], model: type[BaseModel]) -> type[BaseModel]:
    for part in branch:
        if isinstance(part, str):
            model = _inner(model.model_fields[part].annotation)
    return model


def _inner(annotation: Any) -> type[BaseModel]:
    arguments = getattr(annotation, "__args__", ())
    return _inner(arguments[0]) if arguments else annotation


def reference(settings: Settings) -> Iterator[str]:
    """Return the resolved tree as YAML lines, each field with its documentation above it."""
    yield from _document(settings, 0)


def _document(node: BaseModel, depth: int) -> Iterator[str]:
    pad = "  " * depth
    for name, field in type(node).model_fields.items():
        if field.description:
            yield f"{pad}# {field.description}"
        value = getattr(node, name)
        if isinstance(value, BaseModel):
            yield f"{pad}{name}:"
            yield from _document(value, depth + 1)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            yield f"{pad}{name}:"
            for element in value:
                first, *rest = (line for line in _document(element, 0) if not line.startswith("#"))
                yield f"{pad}- {first}"
                yield from (f"{pad}  {line}" for line in rest)
        else:
            yield f"{pad}{name}: {json.dumps(value, ensure_ascii=False)}"
