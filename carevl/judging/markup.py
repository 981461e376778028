"""What surrounds the words of a judgment: thinking, control tokens, fences, emphasis, boxes and tags are taken off."""

from __future__ import annotations

import re
from dataclasses import dataclass

from carevl.judging.mapped_text import MappedText, Span

OPEN, CLOSE = "\ue000", "\ue001"
"""Stand where the answer in a box or a tag begins and ends."""

_THINK = r"(?:think(?:ing)?|thoughts?|reasoning|reflection|analysis|scratchpad|seed:think|mm:think)"
_THINK_END = re.compile(
    rf"</\s*{_THINK}\s*>|◁/think▷|\[/THINK\]|<\|end_of_thought\|>|<\|/think\|>|<\|channel\|>\s*final\s*<\|message\|>",
    re.IGNORECASE,
)
_THINK_BEGIN = re.compile(
    rf"<\s*{_THINK}\s*>|◁think▷|\[THINK\]|<\|begin_of_thought\|>|<\|think\|>|<\|channel\|>\s*(?:analysis|commentary)",
    re.IGNORECASE,
)
_SPECIAL = re.compile(
    r"<[|｜]im_start[|｜]>(?:assistant|system|user)?|<[|｜]start_header_id[|｜]>\w+<[|｜]end_header_id[|｜]>"
    r"|</?(?:s|bos|eos|pad|unk)>|<(?:start|end)_of_(?:turn|text|utterance)>(?:model|user)?|<end_of_utterance>"
    r"|\[/?INST\]|<unused\d+>"
)
_ANSWER_TAG = r"(?:final[_ ]?)?(?:answer|verdict|judge?ment|conclusion|choice|rating|score|ranking|decision|result)\s*>"
_BOX_BEGIN = re.compile(rf"<[|｜]begin_of_box[|｜]>|<\s*{_ANSWER_TAG}", re.IGNORECASE)
_BOX_END = re.compile(rf"<[|｜]end_of_box[|｜]>|</\s*{_ANSWER_TAG}", re.IGNORECASE)
_CONTROL = re.compile(r"<[|｜][^|｜<>\n]{1,40}[|｜]>")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX_TEXT = re.compile(r"\\(?:text|math)\w*\s*\{([^{}]*)\}")
_LATEX_MORE = re.compile(r"\\(?:succ|gt)(?![a-z])|&gt;|\\>")
_LATEX_LESS = re.compile(r"\\(?:prec|lt)(?![a-z])|&lt;")
_LATEX_BLANK = re.compile(r"\\[;,:! ]|\\quad|&nbsp;")
_MATH = re.compile(r"\$\$?|\\[\[\]()]")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w+-]*[ \t]*$", re.MULTILINE)
_LINE_TAG = re.compile(r"<\s*/?\s*(?:br|p|div|li|ul|ol|h\d|tr|evidence|explanation|rationale)\s*/?\s*>", re.IGNORECASE)
_TAG = re.compile(r"</?(?:b|i|u|em|strong|code|span|mark|big)(?:\s[^<>]*)?>", re.IGNORECASE)
_EMPHASIS = re.compile(r"\*+|__+|~~|(?<![\w])_|_(?![\w])|^[ \t]*#+[ \t]+", re.MULTILINE)
_TICKS = re.compile(r"``+")
_RULE = re.compile(r"^[ \t]*[-=]{3,}[ \t]*$", re.MULTILINE)


def split_thinking(text: str) -> tuple[str, str]:
    """Return what a judge thought, up to the last tag that ends thinking, and what it wrote after that."""
    end = max((match.end() for match in _THINK_END.finditer(text)), default=0)
    return text[:end], text[end:]


def thinking_tags(text: str) -> list[Span]:
    """Return where a text has the tags around its thinking: the one that it opens with, and the last that ends it.

    Chat templates may have opened it before the text begins.
    """
    opening = _THINK_BEGIN.match(text, len(text) - len(text.lstrip()))
    ends = list(_THINK_END.finditer(text))
    return [match.span() for match in (opening, *ends[-1:]) if match]


@dataclass(frozen=True)
class Plain:
    """A judgment without its markup.

    `words` are as they were written, `norm` their normal form, each character of which stands for some of `words`.
    `unended`: the text ends while the judge is still thinking.
    """

    words: MappedText
    norm: MappedText
    unended: bool = False

    @classmethod
    def of(cls, text: str) -> Plain:
        """Take the markup off a text."""
        words = MappedText.of(text).part(len(split_thinking(text)[0]), len(text))
        unended = bool(_THINK_BEGIN.search(words.text))
        for pattern, by in _STEPS:
            words = words.replace(pattern, by)
        words = words.replace_around(_LATEX_TEXT, "", "").replace_around(_BOXED, OPEN, CLOSE)
        for pattern in (_MATH, _EMPHASIS):
            words = words.replace(pattern, "")
        return cls(words, MappedText.of(words.text).normalised(), unended)

    def span(self, span: Span) -> Span:
        """Return where in the original text a part of `norm` stands."""
        return self.words.span(*self.norm.span(*span))

    def before(self, place: int) -> str:
        """Return the words before a place of `norm`."""
        return self.words.text if place >= len(self.norm.text) else self.words.text[: self.norm.places[place][0]]


_STEPS = (
    (_BOX_BEGIN, OPEN),
    (_BOX_END, CLOSE),
    (_SPECIAL, "\n"),
    (_CONTROL, "\n"),
    (_FENCE, ""),
    (_TICKS, "`"),
    (_RULE, ""),
    (_LINE_TAG, "\n"),
    (_TAG, ""),
    (_LATEX_MORE, ">"),
    (_LATEX_LESS, "<"),
    (_LATEX_BLANK, " "),
)
