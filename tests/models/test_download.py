"""Models of the hub on their way into the cache, against a stand-in of the hub."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import constants

from carevl.errors import UserError
from carevl.miniworld.weights import WEIGHTS
from carevl.models import download
from carevl.models.download import fetch_models
from carevl.models.hub import ask, choose_files, find_snapshot, partial_file, repository_directory
from carevl.models.locate import Weights, ensure_local, locate, weights_fingerprint

NAME = "Qwen/Qwen2.5-VL-7B-Instruct"
COMMIT = "cc594898137f460bfe9f0759e9844b3ce807cfb5"
MODEL = (NAME, COMMIT, False)


def _quiet(line):
    del line


def _fetch(*models):
    fetch_models({f"judge{n}": model for n, model in enumerate(models or [MODEL])}, _quiet)


def _downloads(hub):
    return [path for method, path, _ in hub.requests if method == "GET" and ("/resolve/" in path or "/cdn/" in path)]


@pytest.fixture
def offline(monkeypatch):
    def switch():
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    return switch


def test_a_pinned_model_is_fetched_once_and_then_costs_no_request(hub, tmp_path, offline):
    hub.add(
        NAME, WEIGHTS / "judge", COMMIT, more={"pytorch_model.bin": b"x" * 999, "sub/model.safetensors": b"x" * 999}
    )
    assert locate(NAME, COMMIT) == NAME
    lines = []
    fetch_models({"judge": MODEL, "captioner": MODEL}, lines.append)
    path = Path(locate(NAME, COMMIT))
    assert path.is_relative_to(tmp_path / "hf")
    assert path.name == COMMIT
    assert sorted(file.name for file in path.iterdir()) == sorted(
        file.name for file in (WEIGHTS / "judge").iterdir() if file.name != "README.md"
    )
    assert (path / "model.safetensors").read_bytes() == (WEIGHTS / "judge" / "model.safetensors").read_bytes()
    assert hub.bytes_served == ask(*MODEL[:2]).size == ask(*MODEL[:2]).present()
    assert re.fullmatch(rf"{NAME}: 7\.\d MB of 7\.\d MB, \d+\.\d MB/s", lines[-2])
    hub.forget()
    _fetch()
    assert ensure_local(NAME, COMMIT) == str(path)
    assert hub.requests == []
    offline()
    _fetch()
    assert Weights.of(NAME, COMMIT).directory == path
    assert weights_fingerprint(NAME, COMMIT) == f"{NAME}@{COMMIT}"


def test_shards_are_fetched_whole_and_one_that_is_gone_is_fetched_again(hub):
    commit = hub.add("org/expert", WEIGHTS / "expert-llama", dtype="bfloat16", shards=2)
    model = ("org/expert", commit, False)
    _fetch(model)
    path = find_snapshot("org/expert", commit)
    assert path is not None
    shards = sorted(path.glob("*.safetensors"))
    assert len(shards) == 2
    shards[1].resolve().unlink()
    assert find_snapshot("org/expert", commit) is None
    hub.forget()
    _fetch(model)
    assert find_snapshot("org/expert", commit) == path
    assert hub.bytes_served == shards[1].stat().st_size


def test_a_branch_is_asked_for_anew_and_stays_what_it_was_where_nobody_answers(hub, monkeypatch):
    first = hub.add("org/judge", WEIGHTS / "judge")
    _fetch(("org/judge", None, False))
    second = hub.add("org/judge", WEIGHTS / "captioner")
    assert Path(locate("org/judge")).name == first
    _fetch(("org/judge", None, False))
    assert Path(locate("org/judge")).name == second
    assert weights_fingerprint("org/judge", None) == "org/judge@main"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    lines = []
    fetch_models({"judge": ("org/judge", None, False)}, lines.append)
    assert lines == [f"org/judge@main: the hub does not answer; commit {second} of the cache is used"]


def test_a_download_that_breaks_off_goes_on_within_a_run(hub, monkeypatch):
    monkeypatch.setattr(download, "_WAIT_SECONDS", 0)
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    hub.cuts, hub.overloads = [2_000_000, 0, 3_000_000], 2
    _fetch()
    assert hub.bytes_served == ask(NAME, COMMIT).size
    path = Path(locate(NAME, COMMIT)) / "model.safetensors"
    assert path.read_bytes() == (WEIGHTS / "judge" / "model.safetensors").read_bytes()


def test_a_download_that_was_given_up_goes_on_in_the_next_run(hub, monkeypatch):
    monkeypatch.setattr(download, "_TRIES", 1)
    monkeypatch.setattr(download, "_WAIT_SECONDS", 0)
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    hub.cuts = [2_000_000, 0]
    with pytest.raises(UserError, match="cannot be reached; try again"):
        _fetch()
    blob = repository_directory(NAME) / "blobs" / ask(NAME, COMMIT).files["model.safetensors"].blob
    assert partial_file(blob).stat().st_size == 2_000_000
    assert locate(NAME, COMMIT) == NAME
    hub.forget()
    _fetch()
    assert hub.bytes_served == ask(NAME, COMMIT).size - 2_000_000
    assert locate(NAME, COMMIT) != NAME


def test_bytes_with_another_sum_are_refused_and_removed(hub):
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    blob = repository_directory(NAME) / "blobs" / ask(NAME, COMMIT).files["model.safetensors"].blob
    blob.parent.mkdir(parents=True)
    partial_file(blob).write_bytes(b"x" * 1000)
    with pytest.raises(
        UserError, match=r"model.safetensors came in damaged and was removed; run the same command again"
    ):
        _fetch()
    hub.forget()
    _fetch()
    assert hub.bytes_served == ask(NAME, COMMIT).size


def test_a_hub_that_names_contents_by_a_path_is_refused(hub):
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    hub.repositories[NAME].commits[COMMIT]["model.safetensors"].__dict__["sha256"] = "../../../x"
    with pytest.raises(UserError, match=r"contents of model.safetensors by '\.\./\.\./\.\./x', which is no hash"):
        _fetch()
    assert not _downloads(hub)


def test_who_cannot_have_a_model_is_told_the_way_out_before_a_byte(hub, monkeypatch):
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    hub.add("org/gated", WEIGHTS / "expert-llama")
    hub.gate("org/gated")
    hub.add("org/pickled", WEIGHTS / "expert-llama", without=("*.safetensors",), more={"pytorch_model.bin": b"x"})
    models = {
        "judge": MODEL,
        "captioner": (NAME, "0" * 40, False),
        "experts.0": ("org/gated", None, False),
        "experts.1": ("org/pickled", None, False),
        "experts.2": ("org/nowhere", None, False),
    }
    with pytest.raises(UserError) as refused:
        fetch_models(models, _quiet)
    lines = str(refused.value).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(f"captioner.path: {NAME}@{'0' * 40}: the hub has no such revision; take a commit from")
    assert lines[1] == (
        f"experts.0.path: org/gated is gated; accept its terms at {hub.url}/org/gated, and set HF_TOKEN to a token of "
        "that account"
    )
    assert lines[2].startswith("experts.1.path: org/pickled has no safetensors weights, only pytorch_model.bin, and no")
    assert lines[3].startswith("experts.2.path: org/nowhere: there is no such directory, and the hub has no such model")
    assert hub.bytes_served == 0
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(UserError, match="is gated, and the account of HF_TOKEN has no access; ask for it at"):
        _fetch(("org/gated", None, False))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    _fetch(("org/gated", None, False))
    assert Path(locate("org/gated")).is_dir()


def test_a_hub_that_is_away_or_slow_is_said_so(hub, monkeypatch, offline):
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.delay = 2.0
    with pytest.raises(UserError, match=rf"^judge0.path: {NAME}@{COMMIT} is not whole .* is too slow to answer; try"):
        _fetch()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"the hub at http://127\.0\.0\.1:9 cannot be reached; try again with a connect"
    ):
        _fetch()
    offline()
    with pytest.raises(
        UserError, match=rf"HF_HUB_OFFLINE forbids to fetch it; .*hf download {NAME} --revision {COMMIT}"
    ):
        _fetch()
    with pytest.raises(UserError, match=r"org/judge@main is not whole in the cache .*`hf download org/judge` where"):
        ensure_local("org/judge")


def test_bytes_are_held_against_the_disk_first(hub, monkeypatch):
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9e9, 9e9, 5_000_000))
    with pytest.raises(UserError, match=r"take 7\.3 MB, and .*/hf/hub has 5\.0 MB free; make room, or set HF_HOME"):
        _fetch()
    assert hub.bytes_served == 0


def test_processes_of_a_node_fetch_a_model_once_between_them(hub):
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    hub.pace = 20e6
    code = f"from carevl.models.locate import ensure_local; print(ensure_local({NAME!r}, {COMMIT!r}))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    outputs = {process.communicate()[0].decode().strip() for process in processes}
    assert outputs == {locate(NAME, COMMIT)}
    assert hub.bytes_served == ask(NAME, COMMIT).size


def test_who_waits_for_another_process_is_told_so(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "_LOG_SECONDS", 0.1)
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    lock = repository_directory(NAME).parent / ".locks" / repository_directory(NAME).name / "carevl.lock"
    lock.parent.mkdir(parents=True)
    holder, lines = FileLock(lock), []
    holder.acquire()

    def log(line):
        lines.append(line)
        holder.release()

    download.fetch_model(MODEL, log)
    assert lines[0] == f"{NAME}: waiting for the process that holds {lock}; 0.0 MB of 7.3 MB are here"
    assert locate(NAME, COMMIT) != NAME


def test_a_snapshot_that_others_fetched_is_used_offline_if_no_shard_is_missing(hub, offline, tmp_path):
    directory = repository_directory("org/expert") / "snapshots" / COMMIT
    shutil.copytree(WEIGHTS / "expert-llama", directory)
    assert find_snapshot("org/expert", COMMIT) == directory
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert find_snapshot("org/expert", COMMIT) is None
    offline()
    with pytest.raises(UserError, match="is not whole in the cache"):
        _fetch(("org/expert", COMMIT, False))


def test_second_copies_of_weights_and_code_that_will_not_run_are_left_out():
    names = ["README.md", "config.json", "consolidated.safetensors", "model-00001-of-00001.safetensors", "modeling.py"]
    names += ["original/params.json", "tokenizer.model", "additional_chat_templates/tool.jinja", "merges.txt", "x.gguf"]
    chosen = ["model-00001-of-00001.safetensors", "config.json", "merges.txt", "tokenizer.model"]
    assert choose_files(names, code=False) == [*chosen, "additional_chat_templates/tool.jinja"]
    assert choose_files(names, code=True)[-1] == "modeling.py"
    assert choose_files(["adapter.safetensors"], code=False) == ["adapter.safetensors"]


def test_actors_say_in_their_log_what_they_fetch(hub, caplog):
    hub.add(NAME, WEIGHTS / "judge", COMMIT)
    with caplog.at_level(logging.INFO, "carevl.models.locate"):
        ensure_local(NAME, COMMIT)
    assert f"{NAME}@{COMMIT}: in {locate(NAME, COMMIT)}" in caplog.messages
