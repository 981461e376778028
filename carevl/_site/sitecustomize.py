"""Loaded at the start of Python processes that vLLM starts and that import torchvision before anything of ours.

`models/engines/vllm.py` puts this directory on PYTHONPATH for them. A sitecustomize that the machine has of its own
is loaded as well.
"""

import sys
from importlib import import_module, util
from pathlib import Path

_HERE = str(Path(__file__).parent)
sys.path[:] = [entry for entry in sys.path if entry != _HERE]
_this = sys.modules.pop("sitecustomize")
if util.find_spec("sitecustomize"):
    import_module("sitecustomize")
sys.modules.setdefault("sitecustomize", _this)  # Python wants to find what it has just loaded
if util.find_spec("carevl"):
    import_module("carevl")
