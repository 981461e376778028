"""Promises of SECURITY.md that no room's own tests show."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from carevl.benchmarks.rows import read_image
from carevl.data.drawn import DataRoot
from carevl.errors import UserError
from carevl.models.locate import locate
from carevl.models.reward_head import load_reward_model
from carevl.models.stored_weights import weight_files
from carevl.settings.loader import load_settings
from carevl.store.run import Run

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


def test_a_models_index_names_no_file_outside_its_directory(tmp_path):
    index = {"weight_map": {"score.weight": "../other/model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json: file of weights '../other/model.safetensors'"):
        weight_files(tmp_path)


@pytest.mark.parametrize("outside", ["miniworld:../x.parquet", "miniworld:train/../../x", "miniworld:/etc/passwd"])
def test_what_is_drawn_lies_in_the_run_directory(outside, tmp_path):
    with pytest.raises(UserError, match="leads out of it"):
        DataRoot.of(load_settings("mini"), Run(tmp_path)).resolve(outside)


@pytest.mark.parametrize("outside", ["miniworld:", "miniworld:..", "miniworld:../weights/judge", "miniworld:."])
def test_shipped_models_are_those_that_are_listed(outside):
    with pytest.raises(UserError, match="no such shipped model; there are captioner"):
        locate(outside)


@pytest.mark.parametrize("outside", ["../secret.png", "link.png", "{tmp}/secret.png"])
def test_a_benchmark_image_outside_its_directory_counts_as_missing(outside, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for file in (tmp_path / "secret.png", images / "inside.png"):
        file.write_bytes(b"bytes")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    assert read_image("inside.png", images).present
    assert not read_image(outside.format(tmp=tmp_path), images).present
