"""Checks what only a GPU shows, in at most eight minutes, with PyTorch, transformers, PEFT and pyarrow, and no network.

    python tests/gpu/check.py [--small] [STEP ...]

Models are random, in their real sizes; `--small` makes them tiny, also for a CPU. Each figure is a line of JSON; those
with `most` have a bound. A step that fails is named, the others run all the same, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import carevl  # noqa: F401  before transformers: it declares what torchvision may lack

STEPS = (
    "shipped",
    "training",
    "step",
    "reward",
    "decoding",
    "merging",
    "sharing",
    "optimisers",
    "attention",
    "families",
)
"""In the order that loses least if the time ends."""
_PATIENCE = 100
"""Seconds after which a step says where it is."""


def main() -> int:
    """Run the steps; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"all when absent: {', '.join(STEPS)}")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a CPU too")
    arguments = parser.parse_args()
    if unknown := set(arguments.steps).difference(STEPS):
        parser.error(f"there is no step {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    import torch
    import transformers

    from tests.gpu.figures import Check

    check = Check(arguments.small)
    if not check.on_gpu and not check.small:
        parser.error("torch sees no GPU here; --small runs on a CPU")
    card = torch.cuda.get_device_name() if check.on_gpu else "cpu"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    check.figure("start", None, card=card, small=check.small, **versions)
    for name in arguments.steps or STEPS:
        started = time.monotonic()
        watch = threading.Timer(_PATIENCE, _say_where, [threading.get_ident()])
        watch.daemon = True
        watch.start()
        try:
            import_module(f"tests.gpu.{name}").run(check)
        except Exception as problem:
            traceback.print_exc()
            check.failures.append(f"{name}: {type(problem).__name__}: {' '.join(str(problem).split())[:300]}")
        watch.cancel()
        check.free()
        check.figure("step_of_the_check_seconds", time.monotonic() - started, step=name)
    for failure in check.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return int(bool(check.failures))


def _say_where(thread: int) -> None:
    """Write where a thread is; faulthandler's timer reads frames that Dynamo is changing, and crashes on them."""
    frame = sys._current_frames().get(thread)
    print("".join(traceback.format_stack(frame)[-12:]), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
