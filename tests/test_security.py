"""Promises of SECURITY.md that no room's own tests show."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest

from carevl.benchmarks.rows import read_image
from carevl.errors import UserError
from carevl.models.locate import locate
from carevl.models.reward_head import load_reward_model
from carevl.settings.loader import load_settings

SHIPPED = Path(locate("miniworld:expert-llama"))


class Trap:
    """An object whose unpickling leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_settings_make_no_objects_of_tags(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(f"seed: !!python/object/apply:os.mkdir ['{tmp_path / 'sprung'}']")
    with pytest.raises(UserError, match="not YAML"):
        load_settings(str(file))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("load", [load_reward_model, lambda path: locate(str(path))], ids=["transformers", "locate"])
def test_pickled_weights_are_refused_unopened(load, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(SHIPPED, model, ignore=shutil.ignore_patterns("*.safetensors"))
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises((OSError, UserError), match=str(model)):
        load(model)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("outside", ["../secret.png", "link.png", "{tmp}/secret.png"])
def test_a_benchmark_image_outside_its_directory_counts_as_missing(outside, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for file in (tmp_path / "secret.png", images / "inside.png"):
        file.write_bytes(b"bytes")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    assert read_image("inside.png", images).present
    assert not read_image(outside.format(tmp=tmp_path), images).present
