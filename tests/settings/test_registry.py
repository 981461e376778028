"""Objects by name and by import path."""

from dataclasses import dataclass

import pytest

from carevl.errors import SettingsError
from carevl.settings.registry import Registry


@dataclass(frozen=True)
class Fruit:
    name: str = "own"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Importable as `orchard`."""
    (tmp_path / "orchard.py").write_text(
        "from tests.settings.test_registry import Fruit\nPEAR = Fruit('pear')\nclass Own(Fruit): pass\nSTONE = 3\n"
        "class Half(Fruit):\n    def __init__(self, weight): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


FRUITS = Registry("fruit", Fruit, (Fruit("apple"), Fruit("plum")))


def test_registered_objects_are_there_by_name_in_their_order():
    assert list(FRUITS) == ["apple", "plum"]
    assert FRUITS["plum"].name == "plum"
    assert "plum" in FRUITS
    assert "pear" not in FRUITS


def test_a_misspelt_name_gets_the_nearest_and_a_strange_one_gets_all():
    with pytest.raises(SettingsError, match=r"there is no fruit 'appel'; did you mean apple\?"):
        FRUITS["appel"]
    with pytest.raises(SettingsError, match="there are apple, plum"):
        FRUITS["xyz"]


def test_a_users_own_object_or_class_is_imported(module):
    import orchard  # type: ignore[import-not-found]  # the test writes it

    own = Registry("fruit", orchard.Fruit, ())
    assert own["orchard:PEAR"].name == "pear"
    assert own["orchard:Own"].name == "own"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.at_all:X", "nowhere.at_all cannot be imported"),
        ("orchard:CHERRY", "orchard has no CHERRY"),
        ("orchard:Half", "missing 1 required positional argument"),
        ("orchard:STONE", "it is no carevl Fruit, but int"),
    ],
)
def test_what_cannot_be_imported_is_refused(module, path, message):
    with pytest.raises(SettingsError, match=message):
        FRUITS[path]
