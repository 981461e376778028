"""Workers of one machine find each other over loopback, and nobody else finds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.train


def test_workers_on_one_machine_listen_on_loopback_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.group_driver", tmp_path]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    workers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [(facts["total"], facts["world"]) for facts in workers] == [(6.0, 2), (6.0, 2)]
    listening = [tuple(each) for facts in workers for each in facts["listening"]]
    assert len(listening) >= 3  # two workers of Ray, and the store
    assert [each for each in listening if each[0] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == []
