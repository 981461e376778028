"""No file, line or traceback names a secret, wherever one was given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from carevl.cli.ending import report_end
from carevl.data.rows import RowError
from carevl.data.urls import UrlFetcher
from carevl.errors import SettingsError, UserError, hide_secrets
from carevl.settings.loader import load_settings
from carevl.settings.models import Judge

CAREVL = Path(sys.executable).with_name("carevl")
SECRETS = {
    name: f"s3cr3t-{number}-{name.lower()}"
    for number, name in enumerate(
        ("JUDGE_KEY", "CAREVL_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "COMET_API_KEY", "AWS_SECRET_ACCESS_KEY")
    )
}
SECRETS["RAY_AUTH_TOKEN"] = "5ec3e7" * 8
PASSWORD = "pa55word-of-mine"
ADDRESS = f"https://user:{PASSWORD}@judges.example/v1"
PLACES = {
    "a source": ("data.sources.0.path", f"s3://AKIA:{PASSWORD}@bucket/pairs.parquet"),
    "images": ("data.sources.0.image_root", f"s3://AKIA:{PASSWORD}@bucket/images"),
    "a benchmark": ("benchmarks.0.path", f"gs://{PASSWORD}@bucket/rows"),
    "a model": ("captioner.path", ADDRESS),
    "an endpoint": ("experts.0", f"{{name: e, kind: endpoint, path: m, endpoint: {{url: '{ADDRESS}'}}}}"),
    "a tokenizer": (
        "experts.0",
        f"{{name: e, kind: endpoint, path: m, endpoint: {{url: 'http://127.0.0.1', tokenizer: '{ADDRESS}'}}}}",
    ),
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def _found(text: str) -> list[str]:
    return [secret for secret in (*SECRETS.values(), PASSWORD) if secret in text]


@pytest.mark.parametrize("place", PLACES)
def test_an_address_with_a_password_is_refused_before_it_is_stored(place: str) -> None:
    setting, value = PLACES[place]
    with pytest.raises(SettingsError, match="holds a user or a password, which would be stored") as refused:
        load_settings("mini", [f"{setting}={value}"])
    assert not _found(str(refused.value))


def test_a_judge_at_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match="holds a user or a password"):
        Judge(path=f"{ADDRESS}#model")


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("kind", [UserError, OSError, RuntimeError])
def test_how_a_command_ends_names_no_secret(
    kind: type[Exception], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    report_end("carevl", kind(f"{ADDRESS} did not take {' or '.join(SECRETS.values())}"), tmp_path)
    printed = capsys.readouterr().err
    assert not _found(printed)
    if kind is RuntimeError:
        [report] = tmp_path.glob("carevl-fault-*.txt")
        assert "[hidden]@judges.example/v1 did not take [JUDGE_KEY] or [CAREVL_API_KEY]" in report.read_text()
        assert not _found(report.read_text())


@pytest.mark.usefixtures("environment")
def test_addresses_without_a_password_stay_as_they_are() -> None:
    for text in ("https://judges.example/v1#m@n", "s3://bucket/a@b", "somebody@example.org", "KEY: value"):
        assert hide_secrets(text) == text


def test_an_image_whose_address_holds_a_password_fails_without_it() -> None:
    for address in (f"http://user:{PASSWORD}@127.0.0.1:9/a.png", f"ftp://user:{PASSWORD}@example.org/a.png"):
        with pytest.raises(RowError) as failed:
            UrlFetcher(seconds=1).fetch(address, 1000)
        assert not _found(str(failed.value))


class _Echo(BaseHTTPRequestHandler):
    """Refuses every request with all that it was sent."""

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.send_response(400)
        self.end_headers()
        self.wfile.write(json.dumps({"error": f"{self.headers} {sent}"}).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    served = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}/v1"
    served.shutdown()
    served.server_close()


@pytest.mark.ray
def test_a_run_with_every_secret_leaves_none_behind(echo: str, tmp_path: Path) -> None:
    """Its endpoint repeats the key in every refusal."""
    expert = f"{{name: far, kind: endpoint, path: m, endpoint: {{url: '{echo}', api_key_env: JUDGE_KEY, retries: 0}}}}"
    settings = ["miniworld.items=8", "miniworld.calibration_images=4", "data.parts=1", "captioner.engine=transformers"]
    settings += [f"experts=[{expert}]", "max_error_fraction=1.0", "sft.tracker=none", "cluster.num_cpus=2"]
    command = [CAREVL, "run", "mini", "--run-dir", tmp_path / "run", "--until", "score"]
    command += [word for setting in settings for word in ("--set", setting)]
    kept = {**os.environ, **SECRETS, "TMPDIR": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False, timeout=560)
    assert not _found(done.stdout + done.stderr)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"settings.yaml", "manifest.json"} <= {file.name for file in files}, done.stderr
    for file in files:
        assert not _found(file.read_bytes().decode("latin-1")), file
