"""How commands end: the line, the status, and the file with the traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from carevl.cli.ending import ending, list_statuses, report_end
from carevl.errors import (
    STATUSES,
    DataError,
    Ended,
    MachineError,
    UserError,
    as_user_error,
    exit_status,
    explain_full_disk,
    reading,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("x"), 2),
        (DataError("x"), 2),
        (MachineError("x"), 3),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 3),
        (OSError(errno.EIO, "Input/output error", "x"), 3),
        (KeyError("x"), 1),
        (ValueError("x"), 1),
        (KeyboardInterrupt(), 130),
        (Ended(signal.SIGTERM), 143),
        (Ended(signal.SIGHUP), 129),
    ],
)
def test_every_error_has_one_status(error, status, capsys):
    assert exit_status(error) == report_end("carevl", error) == status
    assert status in STATUSES
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("carevl: ")


def test_help_lists_every_status():
    assert all(f"{status} {meaning}" in list_statuses() for status, meaning in STATUSES.items())


def test_a_fault_names_the_exception_and_the_file_with_its_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as end, ending("carevl", tmp_path):
        raise KeyError("winner")
    assert end.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    [file] = tmp_path.iterdir()
    assert "KeyError: 'winner'" in line
    assert f"report it with {file}" in line
    assert 'raise KeyError("winner")' in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_a_full_disk_says_so_with_the_file_and_the_bytes_that_are_free(tmp_path):
    with pytest.raises(OSError, match="No space") as full:
        Path("/dev/full").write_text("x")
    sentence = explain_full_disk(full.value, tmp_path)
    assert sentence is not None
    assert sentence.startswith(f"{tmp_path} cannot be written: the disk is full (")
    assert "MB free); make room" in sentence
    named = as_user_error(OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(tmp_path / "part")))
    assert isinstance(named, MachineError)
    assert str(named).startswith(f"{tmp_path / 'part'} cannot be written: no larger file may be")


def test_a_full_disk_is_found_behind_what_a_library_raises(tmp_path):
    wrapped = RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
    assert "the disk is full" in str(explain_full_disk(wrapped, tmp_path))
    outer = RuntimeError("a worker failed")
    outer.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded", "x")
    assert "the quota is used up" in str(explain_full_disk(outer, tmp_path))
    assert explain_full_disk(ValueError("x"), tmp_path) is None


def test_what_a_library_cannot_read_is_named_once(tmp_path):
    with pytest.raises(DataError, match=r"^rows\.json: Expecting value") as bad, reading("rows.json"):
        raise ValueError("Expecting value")
    assert isinstance(bad.value, ValueError)
    with pytest.raises(DataError, match=r"^rows\.json, row 3: no label$"), reading("rows.json"):
        raise ValueError("rows.json, row 3: no label")
    with (
        pytest.raises(DataError, match=r"^rows\.json: not what is expected there \(KeyError: 'x'\)"),
        reading("rows.json"),
    ):
        raise KeyError("x")
    with pytest.raises(RuntimeError, match=r"^ours$"), reading("rows.json"):
        raise RuntimeError("ours")


WAITING = """
import time
from carevl.cli.ending import ending
with ending("carevl"):
    print("waits", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGTERM, 143, "carevl: ended by SIGTERM; run the same command again to go on"),
        (signal.SIGHUP, 129, "carevl: ended by SIGHUP; run the same command again to go on"),
        (signal.SIGINT, 130, "carevl: interrupted; run the same command again to go on"),
    ],
)
def test_signals_end_in_one_line(number, status, line):
    with subprocess.Popen([sys.executable, "-c", WAITING], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(number)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == status
    assert printed.splitlines() == [line]


def test_nohup_stays_so():
    command = ["nohup", sys.executable, "-c", WAITING.replace("60", "1")]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0


def test_the_documents_table_is_that_of_the_program():
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    assert all(f"| {status} | {meaning} |" in text for status, meaning in STATUSES.items())
