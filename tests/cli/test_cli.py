import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

CAREVL = Path(sys.executable).with_name("carevl")


def _carevl(*arguments, **options):
    return subprocess.run([CAREVL, *arguments], capture_output=True, text=True, check=False, timeout=120, **options)


@pytest.mark.parametrize("command", [[], ["miniworld"], ["miniworld", "draw"], ["miniworld", "quality"]])
def test_help_teaches_and_imports_nothing_heavy(command):
    loud = "import sys; from carevl.cli import main\ntry: main()\nfinally: print('HEAVY', sorted({'torch', 'ray', "
    loud += "'transformers', 'vllm', 'pyarrow', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", loud, *command, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "Usage" in done.stdout
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (
            "evaluate",
            ["vl-rewardbench", "rewardbench2", "official_scorer", "verdict_prob", "vllm"],
        ),
        ("judge", ["vllm", "transformers"]),
        ("sources", ["rlaif-v", "llamafactory-sharegpt"]),
        ("run", ["ingest", "demonstrate", "dpo", "evaluate"]),
        ("compare", ["soft_distillation", "carevl_consistency"]),
    ],
)
def test_help_lists_what_is_registered_without_loading_models(command, names):
    loud = "import sys; from carevl.cli import main\ntry: main()\nfinally: print('HEAVY', sorted({'torch', 'ray', "
    loud += "'transformers', 'vllm'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", loud, command, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert [name for name in names if name not in done.stdout] == []
    assert not re.search(r"\{[a-z]+\}", done.stdout)
    assert "HEAVY []" in done.stdout


def test_version_is_the_packages():
    import carevl

    assert _carevl("--version").stdout.strip() == f"carevl {carevl.__version__}"


def test_draw_writes_what_it_lists(tmp_path):
    out = tmp_path / "world"
    done = _carevl("miniworld", "draw", "--items", "20", "--calibration-images", "5", "--out", str(out))
    assert done.returncode == 0, done.stderr
    listed = [line.split() for line in done.stdout.splitlines()]
    assert {Path(path) for _, path in listed} == {
        file for file in out.rglob("*") if file.suffix in (".parquet", ".jsonl") and file.is_file()
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["miniworld", "draw", "--items", "0", "--out", "x"], "--items"),
        (["miniworld", "draw", "--itmes", "5", "--out", "x"], "No such option"),
        (["miniworld", "drwa"], "No such command"),
        (["miniworld", "train", "--work", "x", "--only", "judgee"], "there is no stage 'judgee'"),
        (["miniworld", "quality", "--weights", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_in_a_message_and_a_failing_exit_code(arguments, says, tmp_path):
    done = _carevl(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_in_use_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = _carevl("miniworld", "draw", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
