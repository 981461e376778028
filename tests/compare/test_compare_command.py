"""`carevl compare` refuses in one line what cannot be compared, before anything runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from carevl.compare.run import Final, Plan, check
from carevl.errors import UserError
from carevl.settings.loader import load_settings

CAREVL = Path(sys.executable).with_name("carevl")


@pytest.mark.parametrize(
    ("overrides", "plan", "final", "says"),
    [
        ([], Plan(("base", "distilation")), None, "no arm 'distilation'; did you mean distillation?"),
        (["data.sources.2.labels=false"], Plan(), None, "no source has labels"),
        (["rounds=2"], Plan(), None, "rounds is 2; set it to 1"),
        (["benchmarks=[]"], Plan(), None, "vl-rewardbench"),
        ([], Plan(tries=9), None, "--tries 9: there are 1 to 4"),
        ([], Plan(seeds=0), None, "--seeds 0"),
        ([], Plan(), Final(None), "name their seed with --world-seed"),
        (["benchmarks.0.path=rows.parquet"], Plan(), Final(3), "reads rows.parquet; leave it out"),
        (["benchmarks.0.path=rows.parquet", "benchmarks.0.final_path=null"], Plan(), Final(None), "no final_path"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(overrides, plan, final, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.parquet").touch()  # a path that is not there is refused before
    with pytest.raises(UserError, match=r"^compare: ") as refused:
        check(load_settings("mini", overrides), plan, final)
    assert says in str(refused.value)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--arms", "carvel"], "did you mean carevl?"), (["--world-seed", "3"], "--final"), (["--seeds", "0"], "--seeds")],
)
def test_the_command_says_so_and_fails(arguments, says, tmp_path):
    done = subprocess.run(
        [CAREVL, "compare", "mini", *arguments], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
