"""Where weights lie, and what identifies them."""

import shutil
import sys

import pytest

from carevl.errors import UserError
from carevl.models.locate import adapter_fingerprint, locate, weights_fingerprint

SCHEME = """
from pathlib import Path
from carevl.settings.schemes import Scheme

class Shelf(Scheme):
    name = "shelf"
    def model(self, name):
        return Path(__file__).parent / name

SHELF = Shelf()
"""


@pytest.fixture
def model(tmp_path):
    shutil.copytree(locate("miniworld:expert-llama"), tmp_path / "model")
    return tmp_path / "model"


def test_the_same_files_have_one_fingerprint_wherever_they_lie(model):
    before = weights_fingerprint("miniworld:expert-llama", None)
    assert weights_fingerprint(str(model), None) == before
    (model / "README.md").write_text("A note.")
    weights_fingerprint.cache_clear()
    assert weights_fingerprint(str(model), None) == before
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config + "\n")
    weights_fingerprint.cache_clear()
    assert weights_fingerprint(str(model), None) != before


def test_a_hub_model_is_identified_by_its_revision():
    assert locate("org/model") == "org/model"
    assert weights_fingerprint("org/model", "abc") == "org/model@abc"
    assert weights_fingerprint("org/model", None) == "org/model@main"


def test_a_directory_without_weights_is_refused(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no safetensors weights"):
        locate(str(model))


def test_a_shipped_model_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(UserError, match=r"miniworld:jugde: there is no such shipped model; there are .*judge"):
        locate("miniworld:jugde")


def test_a_scheme_of_the_users_own_has_models(model, tmp_path, monkeypatch):
    (tmp_path / "shelf_scheme.py").write_text(SCHEME)
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("shelf_scheme:SHELF:model") == str(model)
    assert weights_fingerprint("shelf_scheme:SHELF:model", None) == weights_fingerprint("miniworld:expert-llama", None)
    sys.modules.pop("shelf_scheme", None)


def test_an_adapter_needs_both_of_its_files(tmp_path):
    with pytest.raises(UserError, match="has no adapter_config"):
        adapter_fingerprint(str(tmp_path))
