"""The stand-in of the hub, as huggingface_hub and transformers see it."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, HfFileSystem, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from carevl.miniworld.weights import WEIGHTS

NAME = "Qwen/Qwen2.5-VL-7B-Instruct"
COMMIT = "cc594898137f460bfe9f0759e9844b3ce807cfb5"


def test_a_snapshot_is_the_directory_at_its_commit(hub, tmp_path):
    assert hub.add(NAME, WEIGHTS / "judge", COMMIT) == COMMIT
    path = Path(snapshot_download(NAME, revision=COMMIT))
    assert path.is_relative_to(tmp_path / "hf")
    assert path.name == COMMIT
    for file in (WEIGHTS / "judge").iterdir():
        assert (path / file.name).read_bytes() == file.read_bytes()
    served = hub.bytes_served
    assert served == hub.size(NAME, COMMIT, "*")
    assert snapshot_download(NAME, revision=COMMIT) == str(path)
    assert hub.bytes_served == served
    assert not hub.unknown


def test_refusals_are_those_of_the_hub(hub):
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    hub.gate(NAME)
    api = HfApi()
    assert api.model_info(NAME, revision=COMMIT).gated == "manual"
    with pytest.raises(RevisionNotFoundError):
        api.model_info(NAME, revision="0" * 40)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("nobody/nothing")
    with pytest.raises(GatedRepoError):
        hf_hub_download(NAME, "config.json", revision=COMMIT)
    with pytest.raises(GatedRepoError):
        hf_hub_download(NAME, "config.json", revision=COMMIT, token="hf_of_another")
    for name in ("config.json", "model.safetensors"):
        assert Path(hf_hub_download(NAME, name, revision=COMMIT, token=hub.token)).is_file()
    assert not [path for _, path, with_token in hub.requests if path.startswith("/cdn/") and with_token]


def test_weights_are_stored_in_another_format_and_in_shards(hub):
    from transformers import AutoModelForSequenceClassification

    hub.add("org/expert", WEIGHTS / "expert-llama", dtype="bfloat16", shards=2)
    files = {
        sibling.rfilename: sibling.size for sibling in HfApi().model_info("org/expert", files_metadata=True).siblings
    }
    shards = [size for name, size in files.items() if name.endswith(".safetensors")]
    assert len(shards) == 2
    assert sum(shards) < 0.51 * (WEIGHTS / "expert-llama" / "model.safetensors").stat().st_size
    model = AutoModelForSequenceClassification.from_pretrained("org/expert")
    assert str(model.dtype) == "torch.bfloat16"


def test_what_breaks_off_goes_on_at_its_byte(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what huggingface_hub loses at most
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    hub.cuts = [3_000_000]
    path = Path(hf_hub_download(NAME, "model.safetensors", revision=COMMIT))
    assert path.read_bytes() == (WEIGHTS / "judge" / "model.safetensors").read_bytes()
    assert 0 <= hub.bytes_served - path.stat().st_size < 1 << 16
    assert sum(path.startswith("/cdn/") and method == "GET" for method, path, _ in hub.requests) == 2


def test_branches_folders_and_paths_are_listed(hub):
    first = hub.add("org/judge", WEIGHTS / "judge", more={"additional_chat_templates/tool.jinja": b"x"})
    second = hub.add("org/judge", WEIGHTS / "captioner")
    api = HfApi()
    assert api.model_info("org/judge").sha == second != first
    assert [branch.target_commit for branch in api.list_repo_refs("org/judge").branches] == [second]
    [folder] = [entry for entry in api.list_repo_tree("org/judge", revision=first) if not hasattr(entry, "blob_id")]
    assert folder.path == "additional_chat_templates"
    assert api.file_exists("org/judge", "config.json")
    assert not api.file_exists("org/judge", "none.json")
    assert HfFileSystem(endpoint=hub.url).glob("org/judge/*.safetensors") == ["org/judge/model.safetensors"]
    assert not hub.unknown
