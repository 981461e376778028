"""Chat templates, with the delimiters of the published ones."""

from __future__ import annotations

from collections.abc import Mapping

Turn = tuple[str, str]
"""What stands before and behind the content of a message."""


def write_template(
    turns: Mapping[str, Turn], reply: str, image: str, *, start: str = "", system: str = "", trims: bool = False
) -> str:
    """Return a chat template of text and images.

    Args:
        turns: by role.
        reply: begins the reply, if asked for.
        image: stands for an image.
        start: the start token, where the template writes it.
        system: written before a conversation that has no system message.
        trims: texts lose the white space around them.
    """
    strip = " | trim" if trims else ""
    first = _say(repr(start)) if start else ""
    if system:
        first += "{% if messages[0]['role'] != 'system' %}" + _say(repr(system)) + "{% endif %}"
    before, behind = ({role: turn[side] for role, turn in turns.items()} for side in (0, 1))
    parts = (
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        + _say(repr(image))
        + "{% elif part['type'] == 'text' %}"
        + _say("part['text']" + strip)
        + "{% endif %}{% endfor %}"
    )
    whole = "{% if message['content'] is string %}" + _say("message['content']" + strip)
    message = _say(f"{before}[message['role']]") + whole + "{% else %}" + parts + "{% endif %}"
    message += _say(f"{behind}[message['role']]")
    last = "{% if add_generation_prompt %}" + _say(repr(reply)) + "{% endif %}" if reply else ""
    return first + "{% for message in messages %}" + message + "{% endfor %}" + last


def _say(expression: str) -> str:
    return "{{ " + expression + " }}"


def chatml(image: str, *, start: str = "", system: str = "") -> str:
    """Return ChatML: Qwen and most others."""
    turns = {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")}
    return write_template(turns, "<|im_start|>assistant\n", image, start=start, system=system)


def vicuna(image: str) -> str:
    """Return the template of LLaVA 1.5."""
    turns = {"system": ("", " "), "user": ("USER: ", " "), "assistant": ("ASSISTANT: ", " ")}
    return write_template(turns, "ASSISTANT:", image)


def onevision(image: str) -> str:
    """Return ChatML as LLaVA-OneVision writes it: a space behind the role, no end of line behind a turn."""
    turns = {role: (f"<|im_start|>{role} ", "<|im_end|>") for role in ("system", "user", "assistant")}
    return write_template(turns, "<|im_start|>assistant\n", image)


def gemma(image: str, begin: str, end: str) -> str:
    """Return Gemma's template, in which an assistant is called model."""
    turns = {"user": (f"{begin}user\n", f"{end}\n"), "assistant": (f"{begin}model\n", f"{end}\n")}
    return write_template(turns, f"{begin}model\n", image, start="<bos>", trims=True)


def mistral(image: str) -> str:
    """Return Mistral's template, in which nothing begins a reply."""
    turns = {
        "system": ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        "user": ("[INST]", "[/INST]"),
        "assistant": ("", "</s>"),
    }
    return write_template(turns, "", image, start="<s>")


def idefics(image: str, start: str) -> str:
    """Return the template of Idefics 3 and SmolVLM."""
    end = "<end_of_utterance>\n"
    turns = {role: (f"{role.capitalize()}:", end) for role in ("system", "user", "assistant")}
    return write_template(turns, "Assistant:", image, start=start)


def llama(image: str, header: str, end: str) -> str:
    """Return the template of Llama; `header` begins a turn of {role}."""
    turns = {role: (header.format(role=role), end) for role in ("system", "user", "assistant")}
    reply = header.format(role="assistant")
    return write_template(turns, reply, image, start="<|begin_of_text|>", trims=True)


def glm(image: str) -> str:
    """Return GLM's template, in which nothing ends a turn."""
    turns = {role: (f"<|{role}|>\n", "") for role in ("system", "user", "assistant")}
    return write_template(turns, "<|assistant|>\n", image, start="[gMASK]<sop>")


def cohere(image: str) -> str:
    """Return Cohere's template, in which an assistant is called CHATBOT."""
    begin, names = "<|START_OF_TURN_TOKEN|>", {"system": "SYSTEM", "user": "USER", "assistant": "CHATBOT"}
    turns = {role: (f"{begin}<|{name}_TOKEN|>", "<|END_OF_TURN_TOKEN|>") for role, name in names.items()}
    return write_template(turns, f"{begin}<|CHATBOT_TOKEN|>", image, start="<BOS_TOKEN>")


def bare(image: str) -> str:
    """Return content alone: PaliGemma has no turns."""
    return write_template(dict.fromkeys(("system", "user", "assistant"), ("", "")), "", image)


def deepseek(image: str, start: str, end: str) -> str:
    """Return the template of DeepSeek-VL."""
    turns = {"system": ("", "\n\n"), "user": ("User: ", "\n\n"), "assistant": ("Assistant: ", end)}
    return write_template(turns, "Assistant:", image, start=start)
