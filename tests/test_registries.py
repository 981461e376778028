"""Whatever is registered has a document, an example and a test."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import carevl
from carevl.settings.registry import Registry

ROOT = Path(carevl.__file__).parents[1]
DOCUMENTS = "\n".join(file.read_text() for file in sorted((ROOT / "docs").glob("*.md")))
EXAMPLES = "\n".join(
    [
        *re.findall(r"^```.*?^```", DOCUMENTS, flags=re.MULTILINE | re.DOTALL),
        *(file.read_text() for file in sorted((ROOT / "carevl" / "settings" / "presets").glob("*.yaml"))),
    ]
)
TESTS = "\n".join(file.read_text() for file in sorted((ROOT / "tests").rglob("test_*.py")))


def registries() -> dict[str, Registry]:
    """Every registry below `carevl/`, by module and name; modules without one are not imported."""
    found = {}
    for file in sorted((ROOT / "carevl").rglob("*.py")):
        if re.search(r"^[A-Z_]+.* = Registry\(", file.read_text(), flags=re.MULTILINE):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            module = importlib.import_module(name)
            found |= {f"{name}.{key}": value for key, value in vars(module).items() if isinstance(value, Registry)}
    return found


REGISTRIES = registries()
REGISTERED = [(path, name) for path, registry in REGISTRIES.items() for name in registry]


def has_document(name: str) -> bool:
    """A heading of its own, or its name as code."""
    return bool(re.search(rf"^#+ `?{re.escape(name)}`?$|`{re.escape(name)}`", DOCUMENTS, flags=re.MULTILINE))


def has_example(path: str, name: str) -> bool:
    """Carried by the object itself; or the name, or that of its setting, in a block of code or a preset."""
    member = REGISTRIES[path][name]
    words = rf"(?<![\w-])({re.escape(name)}|{re.escape(getattr(member, 'setting', name))})(?![\w-])"
    return bool(getattr(member, "example", None) or re.search(words, EXAMPLES))


def has_test(path: str, name: str) -> bool:
    """A test names it or its setting, or tests whatever is in its registry."""
    registry = path.rpartition(".")[2]
    setting = getattr(REGISTRIES[path][name], "setting", None)
    return (
        f'"{name}"' in TESTS
        or (setting and f".{setting}=" in TESTS)
        or bool(re.search(rf"parametrize\(.*\b{registry}\b", TESTS))
    )


def test_registries_are_found_where_they_are():
    assert "carevl.data.formats.FORMATS" in REGISTRIES


@pytest.mark.parametrize(("path", "name"), REGISTERED)
def test_what_is_registered_has_a_document_an_example_and_a_test(path, name):
    assert has_document(name), f"say in docs/ what the {REGISTRIES[path].kind} `{name}` is"
    assert has_example(path, name), f"show {name} in a code block of docs/, or give the object in {path} an `example`"
    assert has_test(path, name), f'no test names "{name}", and none tests all of {path}'


def test_a_name_that_nobody_mentions_has_nothing():
    name = "-".join(("registered", "nowhere"))
    assert not has_document(name)
    assert f'"{name}"' not in TESTS
