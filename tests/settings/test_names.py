"""Names that become paths: one pattern for all of them, in settings and out of rows."""

from __future__ import annotations

import re

import pytest

from carevl.errors import SettingsError, UserError
from carevl.settings.loader import load_settings
from carevl.settings.names import LONGEST, path_component

BAD = {
    "empty": "",
    "this directory": ".",
    "the one above": "..",
    "out of it": "../../x",
    "absolute": "/etc/x",
    "two parts": "a/b",
    "other systems' two parts": "a\\b",
    "NUL": "a\0b",
    "a line break at its end": "a\n",
    "a hidden file": ".a",
    "an option": "-a",
    "a pattern of names": "a*",
    "300 characters": "a" * 300,
    "300 bytes in 100 characters": "訓" * LONGEST,
    "half a character": "a\udcff",
}
GOOD = ["train", "skywork-qwen3-0.6b", "Train_2", "訓練", "a..b", "7"]
SETTINGS = ["experts.0.name", "data.sources.0.split"]


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_name_that_could_lead_elsewhere_is_refused_in_settings(setting: str, name: str) -> None:
    with pytest.raises(SettingsError, match=f"{re.escape(setting)}: it becomes part of a path"):
        load_settings("mini", [f"{setting}={_quoted(name)}"])


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_a_name_out_of_a_row_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"split .*: it becomes part of a path"):
        path_component(name, "split")


@pytest.mark.parametrize("name", GOOD)
def test_other_names_are_taken_as_they_are(name: str) -> None:
    settings = load_settings("mini", [f"{setting}='{name}'" for setting in SETTINGS])
    assert (settings.experts[0].name, settings.data.sources[0].split, path_component(name, "split")) == (name,) * 3


def _quoted(name: str) -> str:
    """Return a name as YAML, whatever is in it."""
    return '"' + "".join(f"\\u{ord(each):04x}" for each in name) + '"'
