"""Paths with a scheme: who resolves them, and what a scheme does not have."""

from pathlib import Path

import pytest

from carevl.errors import SettingsError, UserError
from carevl.settings.schemes import SCHEMES, Scheme, split_scheme


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importable as `models_only`."""
    (tmp_path / "models_only.py").write_text(
        "from pathlib import Path\n"
        "from carevl.settings.schemes import Scheme\n"
        "class Ours(Scheme):\n"
        "    name = 'ours'\n"
        "    def model(self, name):\n"
        "        return Path('/models') / name\n"
        "OURS = Ours()\n"
        "STONE = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_registered_scheme_is_imported_by_its_name(name: str) -> None:
    split = split_scheme(f"{name}:some/file:x")
    assert split is not None
    scheme, rest = split
    assert isinstance(scheme, Scheme)
    assert (scheme.name, rest) == (name, "some/file:x")


@pytest.mark.parametrize(
    "path", ["data/mine", "s3://bucket/a:b", "/abs/miniworld:x", "org/model", "C:\\data", "other:x", ""]
)
def test_other_paths_have_no_scheme(path: str) -> None:
    assert split_scheme(path) is None


def test_a_scheme_of_ones_own_is_named_by_import_path(module: None) -> None:
    split = split_scheme("models_only:OURS:judge")
    assert split is not None
    assert split[0].model(split[1]) == Path("/models/judge")
    with pytest.raises(SettingsError, match="it is no carevl Scheme, but int"):
        split_scheme("models_only:STONE:judge")
    with pytest.raises(SettingsError, match="models_only has no SAND"):
        split_scheme("models_only:SAND:judge")


def test_what_a_scheme_does_not_have_is_refused(module: None, tmp_path: Path) -> None:
    split = split_scheme("models_only:OURS:judge")
    assert split is not None
    with pytest.raises(SettingsError, match="ours: it has no test data to draw"):
        split[0].draw_test(tmp_path, 1)
    with pytest.raises(SettingsError, match="ours:judge: ours has no models"):
        Scheme.model(split[0], "judge")


def test_a_shipped_model_is_a_directory_and_another_name_is_answered_with_all() -> None:
    split = split_scheme("miniworld:judge")
    assert split is not None
    assert (split[0].model("judge") / "config.json").is_file()
    with pytest.raises(
        UserError, match=r"miniworld:jugde: there is no such shipped model; there are captioner, .*judge"
    ):
        split[0].model("jugde")
