"""The smallest row of every format: one question about `a.png`, of which the answer `A cat.` is the better one."""

from __future__ import annotations

import json
from typing import Any

_ASKED, _GOOD, _BAD = "What is it?", "A cat.", "A dog."
_PAIR = {"chosen": _GOOD, "rejected": _BAD}
_ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")


def _from(name: str, text: str) -> dict[str, Any]:
    return {"from": name, "value": text}


def _said(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


def _rated(response: str, rating: str) -> dict[str, Any]:
    return {"annotations": {aspect: {"Rating": rating} for aspect in _ASPECTS}, "response": response}


EXAMPLES: dict[str, dict[str, Any]] = {
    "vlfeedback": {"prompt": _ASKED, "completions": [_rated(_GOOD, "5"), _rated(_BAD, "1")], "img_path": "a.png"},
    "rlaif-v": {"ds_name": "mine", "image": "a.png", "question": _ASKED, **_PAIR},
    "rlhf-v": {"ds_name": "mine", "image": "a.png", "text": json.dumps({"question": _ASKED, **_PAIR})},
    "mm-rlhf": {"image": "a.png", "prompt": _ASKED, **_PAIR},
    "povid": {
        "image": "a.png",
        "conversations": [_from("human", f"<image>\n{_ASKED}"), _from("gpt", _GOOD)],
        "rejected_conversations": [_from("human", f"<image>\n{_ASKED}"), _from("gpt", _BAD)],
    },
    "spa-vl": {"image": "a.png", "question": _ASKED, **_PAIR},
    "llava-rlhf": {
        "image": "a.png",
        "conversations": [_from("human", f"{_ASKED}\n<image>")],
        "output_1": _from("llava", _BAD),
        "output_2": _from("llava", _GOOD),
        "preference": 2,
    },
    "trl": {
        "images": ["a.png"],
        "prompt": [_said("user", _ASKED)],
        "chosen": [_said("assistant", _GOOD)],
        "rejected": [_said("assistant", _BAD)],
    },
    "llamafactory-sharegpt": {
        "conversations": [_from("human", f"<image>{_ASKED}")],
        "chosen": _from("gpt", _GOOD),
        "rejected": _from("gpt", _BAD),
        "images": ["a.png"],
    },
    "llamafactory-alpaca": {"instruction": f"<image>{_ASKED}", **_PAIR, "images": ["a.png"]},
    "ms-swift": {
        "messages": [_said("user", f"<image>{_ASKED}"), _said("assistant", _GOOD)],
        "rejected_response": _BAD,
        "images": ["a.png"],
    },
    "items": {"image": "a.png", "question": _ASKED, "responses": [_GOOD, _BAD], "source_preference": [1, 0]},
}
"""Name of a format to a row."""
