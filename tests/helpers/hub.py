"""A stand-in of the Hugging Face hub on loopback: it serves small models and data sets under any names and commits.

```python
def test_it(hub):                                   # function scope: its own server and its own empty cache
    commit = hub.add("Qwen/Qwen2.5-VL-7B-Instruct", WEIGHTS / "judge", commit="cc5948…", dtype="bfloat16", shards=2)
    hub.gate("meta/closed")                         # opens to `Authorization: Bearer {hub.token}`
    hub.cuts = [100_000, 0]                         # the next two answers of a large file break off there
    hub.overloads = 2                               # the next two requests for a large file are answered 503
    hub.delay = 2.0                                 # seconds before each answer
    hub.pace = 1e6                                  # bytes/s of a file
    subprocess.run(..., env=os.environ | hub.environment(home))

with serve_hub(directory) as hub:                   # for fixtures of other scopes: sets nothing in this process
    ...
```

As on the hub, safetensors are kept apart (LFS): `resolve` answers with a redirect to another host (`localhost` in place
of `127.0.0.1`), which must not be shown the token.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

_LFS = (".safetensors", ".bin", ".pt", ".parquet")
_NOT_OF_MODELS = ("/api/agent-harnesses",)
"""Calls that huggingface_hub makes where it can, and does without."""
_BLOCK = 1 << 16


@dataclass(frozen=True)
class File:
    """A file of a repository, and the names that git and LFS give it."""

    path: Path

    @cached_property
    def size(self) -> int:
        return self.path.stat().st_size

    @property
    def is_lfs(self) -> bool:
        return self.path.name.endswith(_LFS)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @cached_property
    def oid(self) -> str:
        """The git object: of the file, or of the pointer to it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()
        data = pointer if self.is_lfs else self.path.read_bytes()
        return hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid

    @cached_property
    def parameters(self) -> dict[str, int]:
        """How many weights of each format are in a safetensors file; nothing for one that is none."""
        data = self.path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        if not 8 < size < len(data):
            return {}
        tensors = {name: tensor for name, tensor in json.loads(data[8 : 8 + size]).items() if name != "__metadata__"}
        counts: Counter[str] = Counter()
        for tensor in tensors.values():
            counts[tensor["dtype"]] += math.prod(tensor["shape"])
        return counts

    def lfs(self, name: str) -> dict[str, Any]:
        """LFS facts of an entry, none for other files; calls differ in the key of the sum."""
        return {"lfs": {name: self.sha256, "size": self.size, "pointerSize": 134}} if self.is_lfs else {}


@dataclass
class Repository:
    """The commits of a model, its branches, and whether it asks for a token."""

    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False


class Hub:
    """The server: what it serves, how badly, and what it was asked.

    `requests` holds (method, path with query, whether with a token) in order; `unknown` those of them that nobody here
    can answer; `bytes_served` counts the bytes of files alone.
    """

    token = "hf_stand_in"

    def __init__(self, directory: Path) -> None:
        self.repositories: dict[str, Repository] = {}
        self.delay, self.pace = 0.0, float("inf")
        self.cuts: list[int] = []
        self.overloads = 0
        self.requests: list[tuple[str, str, bool]] = []
        self.unknown: list[str] = []
        self.bytes_served = 0
        self.lock = threading.Lock()
        self._directory = directory
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def add(
        self,
        name: str,
        directory: Path,
        commit: str | None = None,
        *,
        branch: str = "main",
        dtype: str | None = None,
        shards: int = 1,
        more: Mapping[str, bytes] | None = None,
        without: tuple[str, ...] = (),
    ) -> str:
        """Serve a model's directory under a name, as a commit that the branch points to; return the commit.

        Args:
            commit: 40 hex digits; made of name and files when None.
            dtype: the format that its weights and its configuration are stored in; None: as they are.
            shards: how many files its weights are spread over, with an index.
            more: files that it has besides, by path in the repository.
            without: names of files that are left out.
        """
        number = sum(len(repository.commits) for repository in self.repositories.values())
        target = self._directory / f"{number}-{name.replace('/', '-')}"
        shutil.copytree(directory, target, ignore=shutil.ignore_patterns(*without), dirs_exist_ok=True)
        if dtype is not None or shards > 1:
            _store(target, dtype, shards)
        for path, data in (more or {}).items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(data)
        paths = sorted(path for path in target.rglob("*") if path.is_file())
        files = {path.relative_to(target).as_posix(): File(path) for path in paths}
        sums = "".join(file.etag for file in files.values())
        commit = commit or hashlib.sha1(f"{name} {sums}".encode()).hexdigest()
        repository = self.repositories.setdefault(name, Repository())
        repository.commits[commit] = files
        repository.branches[branch] = commit
        return commit

    def gate(self, name: str, closed: bool = True) -> None:
        """Let nobody without the token read a model's files."""
        self.repositories[name].is_gated = closed

    def size(self, name: str, commit: str, *patterns: str) -> int:
        """Bytes of those files of a commit that match one of the patterns."""
        files = self.repositories[name].commits[commit].items()
        return sum(file.size for path, file in files if any(Path(path).match(pattern) for pattern in patterns))

    def environment(self, home: Path, *, offline: bool = False, token: str | None = None) -> dict[str, str]:
        """Environment variables of a process that reads from here into a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": token or "",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def forget(self) -> None:
        """Begin to count anew."""
        with self.lock:
            self.requests.clear()
            self.bytes_served = 0


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients give up: that is what is tested
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing to the error stream of tests."""

    def _answer(self) -> None:
        hub = self.server_hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        with hub.lock:
            hub.requests.append((self.command, self.path, "Authorization" in self.headers))
        time.sleep(hub.delay)
        split = urlsplit(self.path)
        query, path = parse_qs(split.query), split.path
        if path.startswith("/cdn/"):
            self._send_from_cdn(path)
        elif match := re.fullmatch(
            r"/api/(?:models|datasets)/([^/]+(?:/[^/]+)?)/(tree|revision|paths-info)/([^/]+)(?:/(.*))?", path
        ):
            self._send_listing(match[2], match[1], unquote(match[3]), unquote(match[4] or ""), query, body)
        elif match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(/refs|/auth-check)?", path):
            self._send_listing(match[2] or "revision", match[1], "main", "", query, body)
        elif match := re.fullmatch(r"/(?!api/)(?:datasets/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path):
            self._send_file(match[1], unquote(match[2]), unquote(match[3]))
        else:
            if path not in _NOT_OF_MODELS:
                hub.unknown.append(f"{self.command} {self.path}")
            self._refuse(404, None, "Not found")

    def _find(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository, and the commit that a revision means; else the hub's refusal is sent."""
        repository = self.server_hub.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
            return None
        revision = revision.removeprefix("refs/heads/")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, commit

    def _has_access(self, name: str, repository: Repository) -> bool:
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository.is_gated and sent != self.server_hub.token:
            what = f"Access to model {name} is restricted"
            if sent:
                self._refuse(403, "GatedRepo", f"{what} and you are not in the authorized list.")
            else:
                self._refuse(401, "GatedRepo", f"{what}. You must have access to it and be authenticated to access it.")
            return False
        return True

    def _send_listing(
        self, call: str, name: str, revision: str, below: str, query: dict[str, list[str]], body: str
    ) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        repository, commit = found
        files = repository.commits[commit]
        if call == "revision":
            self._send_json(_model_info(name, repository, commit, "blobs" in query))
        elif call == "tree":
            entries = _tree(files, below, query.get("recursive", ["false"])[0].lower() in ("true", "1"))
            if below and not entries:
                self._refuse(404, "EntryNotFound", f"{below} does not exist on {revision}")
            else:
                self._send_json(entries)
        elif call == "paths-info":
            asked = parse_qs(body).get("paths", [])
            self._send_json([_entry(path, files[path]) for path in asked if path in files])
        elif call == "/refs":
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": target}
                for branch, target in repository.branches.items()
            ]
            self._send_json({"branches": branches, "tags": [], "converts": []})
        elif self._has_access(name, repository):
            self._send_json({})

    def _send_file(self, name: str, revision: str, path: str) -> None:
        found = self._find(name, revision)
        if found is None or not self._has_access(name, found[0]):
            return
        repository, commit = found
        file = repository.commits[commit].get(path)
        if file is None:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        elif file.is_lfs:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server_hub.port}/cdn/{name}/{commit}/{path}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-Etag", f'"{file.etag}"')
            self.send_header("X-Linked-Size", str(file.size))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send_bytes(file, {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"'})

    def _send_from_cdn(self, path: str) -> None:
        if "Authorization" in self.headers:
            self._refuse(400, None, "only one auth mechanism is allowed")
            return
        with self.server_hub.lock:
            is_overloaded = self.command == "GET" and self.server_hub.overloads > 0
            self.server_hub.overloads -= is_overloaded
        if is_overloaded:
            self._refuse(503, None, "Service Unavailable")
            return
        owner, name, commit, file = unquote(path).removeprefix("/cdn/").split("/", 3)
        self._send_bytes(self.server_hub.repositories[f"{owner}/{name}"].commits[commit][file], {})

    def _send_bytes(self, file: File, headers: Mapping[str, str]) -> None:
        hub, begin, end = self.server_hub, 0, file.size
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(match[1]), min(int(match[2] or file.size) + bool(match[2]), file.size)
            if begin >= file.size:
                self._refuse(416, None, "Requested Range Not Satisfiable", {"Content-Range": f"bytes */{file.size}"})
                return
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{file.size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with hub.lock:
            cut = hub.cuts.pop(0) if hub.cuts and file.is_lfs else None
        self._stream(file, begin, end if cut is None else min(begin + cut, end))
        if cut is not None:
            self.close_connection = True

    def _stream(self, file: File, begin: int, end: int) -> None:
        hub, at = self.server_hub, begin
        with file.path.open("rb") as stream:
            stream.seek(begin)
            while at < end:
                block = stream.read(min(_BLOCK, end - at))
                self.wfile.write(block)
                self.wfile.flush()
                at += len(block)
                with hub.lock:
                    hub.bytes_served += len(block)
                time.sleep(len(block) / hub.pace)

    def _send_json(self, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str | None, message: str, more: Mapping[str, str] | None = None) -> None:
        data = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        for header, value in (more or {}).items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _model_info(name: str, repository: Repository, commit: str, with_sizes: bool) -> dict[str, Any]:
    siblings: list[dict[str, Any]] = []
    for path, file in repository.commits[commit].items():
        sizes = {"size": file.size, "blobId": file.oid, **file.lfs("sha256")} if with_sizes else {}
        siblings.append({"rfilename": path, **sizes})
    gated = "manual" if repository.is_gated else False
    parameters: Counter[str] = Counter()
    for path, file in repository.commits[commit].items():
        parameters.update(file.parameters if path.endswith(".safetensors") else {})
    about = {"safetensors": {"parameters": parameters, "total": parameters.total()}} if parameters else {}
    return {"id": name, "modelId": name, "sha": commit, "private": False, "gated": gated, "siblings": siblings, **about}


def _entry(path: str, file: File) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": file.size, "oid": file.oid, **file.lfs("oid")}


def _tree(files: Mapping[str, File], below: str, recursive: bool) -> list[dict[str, Any]]:
    inside = {path: file for path, file in files.items() if not below or path.startswith(f"{below}/")}
    if recursive:
        return [_entry(path, file) for path, file in inside.items()]
    entries: dict[str, dict[str, Any]] = {}
    for path, file in inside.items():
        head, slash, _ = path[len(below) :].lstrip("/").partition("/")
        full = f"{below}/{head}".lstrip("/")
        entries[full] = {"type": "directory", "path": full, "size": 0, "oid": "0" * 40} if slash else _entry(path, file)
    return list(entries.values())


def _store(directory: Path, dtype: str | None, shards: int) -> None:
    """Store a directory's weights in another format, and spread over several files."""
    import torch
    from safetensors.torch import load_file, save_file

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        weights |= load_file(file)
        file.unlink()
    if dtype is not None:
        target = getattr(torch, dtype)
        weights = {name: value.to(target) if value.is_floating_point() else value for name, value in weights.items()}
        config = (directory / "config.json").read_text()
        (directory / "config.json").write_text(re.sub(r'"(torch_)?dtype": "\w+"', rf'"\1dtype": "{dtype}"', config))
    if shards == 1:
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
        return
    names, index = sorted(weights), {}
    for number in range(shards):
        shard = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        held = {name: weights[name] for name in names[number::shards]}
        save_file(held, directory / shard, {"format": "pt"})
        index |= dict.fromkeys(held, shard)
    size = sum(value.nbytes for value in weights.values())
    facts = {"metadata": {"total_size": size}, "weight_map": index}
    (directory / "model.safetensors.index.json").write_text(json.dumps(facts))


@contextmanager
def serve_hub(directory: Path) -> Iterator[Hub]:
    """Serve an empty hub that keeps its files in a directory; this process and its environment stay as they are."""
    hub = Hub(directory)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process and those that it starts read from, into an empty cache below `tmp_path/hf`.

    huggingface_hub reads its environment once, when it is imported; what it keeps of it is set, too.
    """
    from huggingface_hub import constants, hf_api

    (tmp_path / "hub").mkdir()
    with serve_hub(tmp_path / "hub") as served:
        for name, value in served.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        host, template = served.url, served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", host)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hf_api.api, "endpoint", host)
        yield served
