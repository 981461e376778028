"""Models of which a file is damaged: commands that read them end in one line that names the model or the file."""

from __future__ import annotations

import shutil

import pytest

from carevl.miniworld.weights import WEIGHTS
from tests.cli.test_hostile_paths import places, run_main  # noqa: F401 (places is a fixture)
from tests.helpers.damaged_files import WAYS

JUDGE = "judge {model} --image {image} --question q --response a --response b"
CHECK = "check {model}"
EXPERT = "plan mini --run-dir {run} --set experts.0.path={model}"


def _files(model: str) -> list[str]:
    return sorted(file.name for file in (WEIGHTS / model).iterdir() if file.is_file() and file.suffix != ".md")


CASES = [
    *((words, "judge", file) for words in (JUDGE, CHECK) for file in _files("judge")),
    *((EXPERT, "expert-llama", file) for file in _files("expert-llama")),
]


@pytest.mark.parametrize(("words", "model", "file"), CASES)
def test_a_damaged_model_ends_in_one_line(words, model, file, places, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for way, damage in WAYS.items():
        directory = tmp_path / way.replace(" ", "-") / "model"
        shutil.copytree(WEIGHTS / model, directory)
        damage(directory / file)
        given = [word.format(model=directory, run=directory / "run", **places) for word in words.split()]
        status = run_main(given)
        printed = capsys.readouterr().err
        assert status in (0, 2, 3), (way, printed)
        assert "Traceback" not in printed, (way, printed)
        if status:
            assert printed.strip(), way
            assert "a fault of the program" not in printed, (way, printed)
            assert str(directory) in printed or file in printed, (way, printed)
