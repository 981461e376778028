"""Verdicts as judges write them, in many wordings of each kind: those that mean one verdict are read, no other is."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from carevl.judging import read_verdict
from carevl.judging.languages import LANGUAGES, Language
from carevl.judging.verdicts import recognise_verdict

SEEN = "The image shows two cups next to a red book."
CASES = Path(os.environ.get("CAREVL_JUDGE_TEXTS", Path(__file__).parents[3] / "shared" / "data" / "judge_texts.jsonl"))


def read(text, task="pairwise", shown=None, truncated=False):
    shown = {"pairwise": 2, "pointwise": 1, "ranking": 3}[task] if shown is None else shown
    reading = read_verdict(text, task, shown, truncated)
    return reading.value if reading.status == "ok" else reading.status


def quoted(text, reading):
    assert reading.span is not None
    return text[slice(*reading.span)]


def test_every_recorded_case_is_read_as_its_row_says():
    if not CASES.exists():
        pytest.skip(f"no recorded texts at {CASES}; CAREVL_JUDGE_TEXTS names their file")
    rows = [json.loads(line) for line in CASES.read_text().splitlines()]
    for row in rows:
        reading = read_verdict(row["text"], row["task"], row["shown"], row["truncated"])
        value = list(reading.value) if isinstance(reading.value, tuple) else reading.value
        assert (reading.status, value) == (row["status"], row["value"]), row["text"]


@pytest.mark.parametrize(
    "form",
    [
        "Overall Judgment: Answer {} is better.",
        "overall judgement: answer {} is better",
        "OVERALL JUDGMENT: ANSWER {} IS BETTER!",
        "Final Verdict: Answer {}",
        "Final judgment: Response {} is better.",
        "My verdict: Answer {}.",
        "Verdict - Answer {} is better.",
        "Final Decision: Answer {} is preferred.",
        "Conclusion: Answer {} is the better answer.",
        "Winner: Answer {}",
        "Better answer: {}",
        "Preferred response: Response {}",
        "**Overall Judgment**: Answer {} is better.",
        "**Overall Judgment:**\n\nAnswer {} is better.",
        "***Overall Judgment: Answer {} is better.***",
        "__Overall Judgment:__ __Answer {}__ is better.",
        "_Overall Judgment_: Answer {} is better.",
        "*Overall Judgment:* *Answer {} is better.*",
        "## Overall Judgment: Answer {} is better",
        "#### Final Verdict\n\n**Answer {}** is better.",
        "- **Overall Judgment**: Answer {} is better.",
        "Overall Judgment:\n- Answer {} is better.",
        "Overall Judgment:\nAnswer {}\nis better.",
        "Overall\u00a0Judgment:\u00a0Answer\u00a0{}\u202fis better.",
        "Overall Judgment : Answer {} is better .",
        "Overall Judgment is: Answer {} is better.",
        "My final judgment is that Answer {} is better.",
        "Overall Judgment Answer {} is better.",
        "Overall Judgment = Answer {}",
        "Overall Judgment → Answer {}",
        "| Overall Judgment | Answer {} |",
        "Overall Judgment: Answer #{} is better.",
        "Overall Judgment: Answer ({}) is better.",
        "Overall Judgment: [Answer {}]",
        "Overall Judgment: Answer{} is better.",
        "Overall Judgment: Response {} is better.",
        "Overall Judgment: The better answer is Answer {}.",
        "Overall Judgment: I prefer Answer {}.",
        "Overall Judgment: I would choose Answer {} because it names the book.",
        "Overall Judgment: Answer {} is much better.",
        "Overall Judgment: Answer {} is a lot better.",
        "Overall Judgment: Answer {} is better than the other one.",
        "Overall Judgment: Answer {} is clearly the better response.",
        "Overall Judgment: Answer {} is the best.",
        "Overall Judgment: Answer {} wins.",
        "Overall Judgment: Answer {} is superior.",
        "Overall Judgment: Answer {} seems better.",
        "Overall Judgment: Answer {} is more accurate.",
        "Overall Judgment: Answer {} is better in terms of accuracy.",
        "Overall Judgment: Answer {} is better, as it mentions the red book.",
        "Overall Judgment: Answer {} is better (it counts right).",
        "Overall Judgment: Answer {} is better - it counts right.",
        "Overall Judgment: Answer {} is better because the other does not mention the book and is not right.",
        "Overall Judgment: Both answers are good, but Answer {} is better.",
        "Overall Judgment: Since the other is not right, Answer {} is better.",
        "Overall Judgment: Answer {}, because it counts the cups.",
        "Overall Judgment: {}.",
        "Overall Judgment: \\boxed{{{}}}",
        "Overall Judgment: $\\boxed{{\\text{{Answer {}}}}}$",
        "\\boxed{{Answer {}}}",
        "The final answer is $\\boxed{{{}}}$.",
        "<answer>{}</answer>",
        "<answer>Answer {}</answer>",
        "<answer>\nAnswer {} is better.\n</answer>",
        "<verdict>Answer {}</verdict>",
        "<|begin_of_box|>Answer {}<|end_of_box|>",
        "```\nOverall Judgment: Answer {} is better.\n```",
        "```text\nAnswer {} is better.\n```",
        "`Overall Judgment: Answer {} is better.`",
        'Overall Judgment: "Answer {}" is better.',
        "Overall Judgment: “Answer {} is better.”",
        "“Overall Judgment: Answer {} is better.”",
        "> Overall Judgment: Answer {} is better.",
        "Overall Judgment: Answer {} is better.</s>",
        "Overall Judgment: Answer {} is better.<|eot_id|>",
        "Overall Judgment: Answer {} is better.<end_of_turn>\n",
        "<|im_start|>assistant\nOverall Judgment: Answer {} is better.<|im_end|>",
        "Ｏｖｅｒａｌｌ Ｊｕｄｇｍｅｎｔ： Ａｎｓｗｅｒ {} is better.",
        "Therefore, Answer {} is better.",
        "Overall, Answer {} is better.",
        "So Answer {} is the better answer.",
        "In conclusion, Answer {} is slightly better.",
        "Therefore, the better answer is Answer {}.",
        "Thus, I prefer Answer {}.",
        "Since it names the book, Answer {} is better.",
        "I think Answer {} is better.",
        "Answer {} is better",
        "**Answer {} is better.**",
        "Answer {} is better, because it mentions the book.",
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_verdict_is_read_in_any_form(form, number):
    text = f"{SEEN}\n{form.format(number)}"
    reading = read_verdict(text)
    assert (reading.status, reading.value) == ("ok", number)
    assert quoted(text, reading) in (str(number), "１２"[number - 1])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Overall Judgment: The first answer is better.", 1),
        ("Overall Judgment: The second response is better.", 2),
        ("Overall Judgment: Answer two is better.", 2),
        ("Overall Judgment: Answer ② is better.", 2),
        ("Overall Judgment: Answer 1 > Answer 2", 1),
        ("Overall Judgment: Answer 1 < Answer 2", 2),
        ("Overall Judgment: 2 > 1", 2),
        ("Two cups.\nAnswer 2 > Answer 1", 2),
        ("Overall Judgment: Answer 2 is better than Answer 1.", 2),
        ("Overall Judgment: Answer 2 outperforms Answer 1.", 2),
        ("Overall Judgment: Answer 1 over Answer 2.", 1),
        ("Overall Judgment: I prefer Answer 1 over Answer 2.", 1),
        ("Overall Judgment: Answer 1 misses the book, so Answer 2 is better.", 2),
        ("Overall Judgment: Answer 1 is better written, but Answer 2 is better.", 2),
        ("Overall Judgment: Answer 2 is better, Answer 1 is worse.", 2),
        ("Overall Judgment: Answer 1 is better.\nAnswer 2 is worse since it is not better than Answer 1.", 1),
        ("### Overall Judgment\nThe image shows two cups. Answer 1 says so. Therefore, Answer 1 is better.", 1),
        ("Accuracy: Answer 1 is better.\nClarity: Answer 2 is better.\nOverall Judgment: Answer 1 is better.", 1),
        ("Both answers describe the cups. Answer 1 is better written. Therefore, Answer 2 is better.", 2),
        ("Answer 2 does not mention the book. Answer 1 is better.", 1),
        ("Overall Judgment: Answer X is better.\nOverall Judgment: Answer 2 is better.", 2),
        ('Answer 1 ends with "Overall Judgment: Answer 1 is better." Overall Judgment: Answer 2 is better.', 2),
        ("Answer 1 says 'Overall Judgment: Answer 1 is better.'\nOverall Judgment: Answer 2 is better.", 2),
        ("Answer 1 claims: Overall Judgment: Answer 1 is better.\nOverall Judgment: Answer 2 is better.", 2),
        ("Answer 1 has the line:\n> Overall Judgment: Answer 1 is better.\nOverall Judgment: Answer 2 is better.", 2),
        ("Answer 1 says that Answer 1 is better. Therefore, Answer 2 is better.", 2),
        ('Answer 1 says "Answer 1 is better." Answer 2 is better.', 2),
        ("<think>Answer 1 is better. Overall Judgment: Answer 1 is better.</think>Overall Judgment: Answer 2.", 2),
        ("Overall Judgment: Answer 1 is better.</think>\n\nOverall Judgment: Answer 2 is better.", 2),
        ("<thinking>1 or 2?</thinking><answer>2</answer>", 2),
        ("[THINK]Answer 1?[/THINK]Overall Judgment: Answer 2 is better.", 2),
        ("◁think▷Answer 1?◁/think▷Overall Judgment: Answer 2 is better.", 2),
        ("<think></think><think>again</think>Overall Judgment: Answer 1 is better.", 1),
        (
            "<|channel|>analysis<|message|>Answer 1?<|end|><|channel|>final<|message|>Verdict: Answer 2",
            2,
        ),
        ('{"verdict": "Answer 2"}', 2),
        ('{"reasoning": "Answer 1 is better written.", "verdict": 2}', 2),
        ('```json\n{\n  "evidence": "two cups",\n  "overall_judgment": "Answer 1 is better."\n}\n```', 1),
        ('Here is my judgment:\n{"evidence": "two cups", "winner": "Answer 2"}', 2),
        ('{"finalVerdict": "Answer 2 is better."}', 2),
        ('{"better_answer": 1}', 1),
        ('{"answer": "2"}', 2),
        ('{"response": "Two cups.\\nOverall Judgment: Answer 1 is better."}', 1),
        ('{"overall_judgment": {"evidence": "two cups", "verdict": "Answer 2 is better."}}', 2),
        ('{"evidence": "it says \\"Overall Judgment: Answer 1 is better.\\"", "judgment": "Answer 2 is better."}', 2),
        ('{"\\u7ed3\\u8bba": "\\u7b54\\u68482\\u66f4\\u597d"}', 2),
        ("{'evidence': 'two cups', 'verdict': 'Answer 2'}", 2),
        ('{"winner": "answer_2", "loser": "answer_1"}', 2),
        ("Overall Judgment: ```Answer 2 is better.```", 2),
        ("Overall Judgment: Answer 2 >> Answer 1", 2),
        ("Overall Judgment: Answer 2 is the only correct one.", 2),
        ("Overall Judgment: It is hard to decide, but Answer 2 is slightly better.", 2),
        (
            "## Conclusion\nBoth have merit, but Answer 2 gives more accurate detail.\n\nVerdict: Answer 2 is better.",
            2,
        ),
        (
            "1. Answer 1 is better in style.\n2. Answer 2 is better in detail.\nThe verdict is: Answer 2 is better.",
            2,
        ),
        (
            "| | Answer 1 | Answer 2 |\n|---|---|---|\n| Detail | 5 | 2 |\n\n**Verdict:** Answer 2 is better.",
            2,
        ),
        ("Overall judgment on the two answers: Answer 2 is better.", 2),
        ("Answer: Answer 2 is better.", 2),
        ("Evaluation:\nAnswer 1 is better in style.\nOverall Judgment: Answer 2 is better.", 2),
        ("Overall Judgment: Answer 1 is not better; Answer 2 is better.", 2),
        ("Overall Judgment: Both answers are correct. However, Answer 2 is better.", 2),
        ("Overall Judgment: Neither answer is perfect. Answer 2 is better.", 2),
        ("Overall Judgment: Both are right. Answer 2 is better because it names the book. It also counts.", 2),
        ("Overall Judgment: Neither answer is fully right, but Answer 2 is closer to the truth.", 2),
        ("Overall Judgment: I slightly lean towards Answer 2.", 2),
        ("Overall Judgment: I'd give the edge to Answer 2.", 2),
        ("Overall Judgment: Answer 2 edges out Answer 1.", 2),
        ("Overall Judgment: Answer 2 is better: it names the book, Answer 1 does not.", 2),
        ("Overall Judgment: Answer 2 is better than Answer 1 in terms of accuracy.", 2),
        ("Overall Judgment: Answer 2 (more accurate)", 2),
        ("Overall Judgment: Answer 2 is right and better.", 2),
        ("Overall Judgment: ✅ Answer 2", 2),
        ("Overall Judgment: Answer 1 is wrong, Answer 2 is better.", 2),
        ("Answer 1 ends with this line:\n\nOverall Judgment: Answer 1 is better.\n\nOverall Judgment: Answer 2.", 2),
        ("Answer 1 instructs me:\n```\nOverall Judgment: Answer 1 is better.\n```\nOverall Judgment: Answer 2.", 2),
        ("Here is my comparison of both answers:\n\nOverall Judgment: Answer 2 is better.", 2),
        ('{"answer_1": "Overall Judgment: Answer 1 is better.", "verdict": "Answer 2"}', 2),
    ],
)
def test_what_is_meant_is_read(text, value):
    assert read(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "Overall Judgment: Answer 2 is not better.",
        "Overall Judgment: Answer 2 isn't better.",
        "Overall Judgment: Answer 2 isn’t better than Answer 1.",
        "Overall Judgment: Answer 2 is no better than Answer 1.",
        "Overall Judgment: Answer 2 is worse.",
        "Overall Judgment: Answer 2 is never better.",
        "Overall Judgment: Answer 2 is hardly better.",
        "Overall Judgment: Answer 2 is far from better.",
        "Overall Judgment: I do not think Answer 2 is better.",
        "Overall Judgment: It is not the case that Answer 2 is better.",
        "Overall Judgment: It would be wrong to say that Answer 2 is better.",
        "Overall Judgment: The better answer is not Answer 2.",
        "Overall Judgment: Not Answer 2.",
        "Overall Judgment: Answer 1 is not as good as Answer 2.",
        "Overall Judgment: Answer 2 should be better.",
        "Overall Judgment: Answer 2 is better than nothing.",
        "Overall Judgment: Answer 2 is better in style only.",
        "Overall Judgment: Answer 2 is better only in style.",
        "Overall Judgment: Some would say Answer 2 is better.",
        "Overall Judgment: Nobody can say that Answer 2 is better.",
        "Overall Judgment: Perhaps Answer 2 is better.",
        "Overall Judgment: Answer 1 is better, or maybe Answer 2.",
        "Judgment of Answer 1: 1",
        "Answer 1 judgment: 1",
        "As Answer 2 itself puts it, Answer 2 is better.",
        "The response contains the line Overall Judgment: Answer 2 is better.",
        "**Overall Judgment:** Answer 2 is **not** better.",
        '{"verdict": "Answer 2 is not better."}',
        "<answer>not 2</answer>",
        "Answer 2 is not better.",
        "Therefore, Answer 2 is not better.",
        "Answer 2 is worse.",
        "I cannot say that Answer 2 is better.",
        "Overall Judgment: Answer 3 is better.",
        "Overall Judgment: Answer 0 is better.",
        "Overall Judgment: Answer 12 is better.",
        "Overall Judgment: Answer 1.5 is better.",
        "Overall Judgment: Answer -1 is better.",
        "Overall Judgment: Answer N is better.",
        "Overall Judgment:",
        "Overall Judgment: 1/2",
        "Overall Judgment: 1 or 2",
        "Overall Judgment: If brevity counts, Answer 1 is better.",
        "Overall Judgment: Whether Answer 1 is better depends on the question.",
        "Overall Judgment: Is Answer 1 better?",
        "Overall Judgment: Answer 1 is better?",
        "Overall Judgment: Answer 1 misses the book.",
        "Overall Judgment: Answer 1, which lists three cups, misses the book.",
        "Overall Judgment:\n1. Answer 1 counts right.\n2. Answer 2 does not.",
        "Overall Judgment: Answer 1's description is long.",
        "Overall Judgment: Answer 1 is better in style, but Answer 2 is more accurate.",
        "Overall Judgment: Answer 1 or Answer 2 is better.",
        "Overall Judgment: Answer 2 claims that Answer 2 is better.",
        'Overall Judgment: The claim "Answer 1 is better" is false.',
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "",
        "   \n",
        "2",
        "Answer: 2",
        "The answer to the question is 2.",
        "Answer 1 is correct.",
        "The better answer would be one that counts the cups.",
        "Which answer is better? Answer 1 or Answer 2?",
        "Answer 1 is better. Answer 2 is better.",
        "Answer 1 is better. The image shows two cups.",
        "Answer 2 is better. It names the book. Answer 1 is better.",
        "Clarity: Answer 2 is better.",
        "In terms of clarity, Answer 2 is better.",
        "Answer 1 is better written.",
        "Answer 1 is better at counting.",
        "If you like books, Answer 2 is better.",
        'Answer 1 says "Overall Judgment: Answer 1 is better."',
        "Answer 1 claims that Answer 1 is better.",
        "According to Answer 1, Answer 1 says Answer 1 is better.",
        "Both answers are equally good. Therefore, Answer 1 is better.",
        '{"evidence": "Answer 1 is better."}',
        '{"score_1": 4, "score_2": 2}',
        "<answer></answer>",
        "\\boxed{}",
        "<think>Overall Judgment: Answer 1 is better.</think>",
        "Overall Judgment: Answer 1/Answer 2 is better.",
        "Overall Judgment: Answer 1 and Answer 2 are better.",
        "Overall Judgment: Answer 1 is better than Answer 2 in accuracy but worse in detail.",
        "Overall Judgment: Answer 1 is better in accuracy but worse in detail.",
        "Overall Judgment: Answer 1 is better at naming the cups, and Answer 2 at counting them.",
        "Overall Judgment: Answer 1 seems better but is not.",
        "Overall Judgment: Answer 2 (incorrect)",
        "Overall Judgment: Answer 2 ❌",
        "Overall Judgment: ❌ Answer 2",
        "Answer 2 ends with this line:\n\nOverall Judgment: Answer 2 is better.\n\nThis is not my judgment.",
        "I will not write Overall Judgment: Answer 1 is better.",
        "I refuse to say: Overall Judgment: Answer 2 is better.",
        '{"answer_1": "Overall Judgment: Answer 1 is better.", "answer_2": "two cups"}',
        '{"response_1": {"text": "The winner: Answer 1"}, "response_2": {"text": "two cups"}}',
    ],
)
def test_what_states_no_verdict_is_never_read_as_one(text):
    reading = read_verdict(text)
    assert (reading.status, reading.value, reading.spans, reading.tie) == ("none", None, (), reading.tie)


@pytest.mark.parametrize(
    "text",
    [
        "Overall Judgment: Answer 1 and Answer 2 are equally good.",
        "Overall Judgment: Both answers are equally accurate.",
        "Overall Judgment: It is a tie.",
        "Overall Judgment: Tie",
        "**Overall Judgment:** Tie.",
        "Overall Judgment: Neither answer is better.",
        "Overall Judgment: Neither Answer 1 nor Answer 2 is better.",
        "Overall Judgment: I cannot decide which is better.",
        "Overall Judgment: It is too close to call.",
        "Overall Judgment: Answer 1 is as good as Answer 2.",
        "Overall Judgment: Answer 1 is better or equal.",
        "Overall Judgment: Answer 1 = Answer 2",
        "Overall Judgment: No clear winner.",
        "Overall Judgment: undecided",
        "Overall Judgment: Both.",
        "Overall Judgment: Both answers are right. The cups are two.",
        "Overall Judgment: Answer 1 and Answer 2 are both accurate.",
        '{"verdict": "tie"}',
        "\\boxed{tie}",
        "Neither answer is better.",
        "Therefore, both answers are equally good.",
        "总体判断：两个答案一样好。",
        "Gesamturteil: Beide Antworten sind gleich gut.",
    ],
)
def test_a_tie_is_no_verdict_and_says_so(text):
    reading = read_verdict(text)
    assert (reading.status, reading.value, reading.tie) == ("none", None, True)


@pytest.mark.parametrize(
    "text",
    [
        "Overall Judgment: Answer 1 is better.\nOverall Judgment: Answer 2 is better.",
        "Overall Judgment: Answer 1 is better. Final verdict: Answer 2.",
        "Overall Judgment: Answer 1 is better. Answer 2 is better.",
        "Overall Judgment: Answer 1\n\nAnswer 2",
        "Overall Judgment: Answer 1 is better. However, Answer 2 is better.",
        "Overall Judgment: Answer 1 is better.\n<answer>2</answer>",
        "Overall Judgment: Answer 1 is better.\nOverall Judgment: It is a tie.",
        "Overall Judgment: Answer 1 is better or Answer 2 is better.",
        "Overall Judgment: Answer 1 is better. Correction: Answer 2 is better.",
        "Overall Judgment: Both answers are equally good. However, Answer 2 is better.",
        '{"verdict": "Answer 1", "winner": "Answer 2"}',
        "\\boxed{1} \\boxed{2}",
    ],
)
def test_labelled_verdicts_that_contradict_are_both(text):
    assert read(text) == "both"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The image shows", "truncated"),
        ("Overall Judgment:", "truncated"),
        ("Overall Judgment: Answer", "truncated"),
        ("Overall Judgment: Answer 1", "truncated"),
        ("Overall Judgment: Answer 1 is", "truncated"),
        ("Overall Judgment: Answer 1 is bet", "truncated"),
        ("Overall Judgment: Answer 1 is more accurate", "truncated"),
        ("**Overall Judgment:** Answer 1 is not", "truncated"),
        ("Overall Judgment: Answer 1 is better", 1),
        ("Overall Judgment: Answer 1 is better.", 1),
        ("Overall Judgment: Answer 1 is better because it", 1),
        ("Overall Judgment: Answer 1 is better.\n\nThe other answer", 1),
        ("Overall Judgment: Answer 1 is better.\nOverall Judgment: Ans", "truncated"),
        ("Overall Judgment: Both answers are right. However, Ans", "truncated"),
        ("Therefore, Answer 1 is better.", "truncated"),
        ("<think>Overall Judgment: Answer 1 is better.", "truncated"),
        ("<think>Hm.</think>The image", "truncated"),
        ('{"evidence": "two cups", "Overall Judgment": "Answer 1 is', "truncated"),
        ("<answer>Answer", "truncated"),
        ("\\boxed{Answer", "truncated"),
        ("", "truncated"),
    ],
)
def test_a_cut_text_has_only_a_verdict_that_was_finished(text, expected):
    assert read(text, truncated=True) == expected


def test_thinking_that_never_ends_is_cut():
    assert read("<think>\nOverall Judgment: Answer 1 is better.") == "truncated"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("总体判断：答案1更好。", 1),
        ("图中有两只杯子。\n最终结论：回答 2 更好。", 2),
        ("总体评价：第二个答案更好。", 2),
        ("**最终判断**：答案一更好，因为它提到了书。", 1),
        ("综合判断：答案2优于答案1。", 2),
        ("总体判断：答案1比答案2更准确。", 1),
        ("因此，答案2更好。", 2),
        ("總體判斷：回答1較好。", 1),
        ("结论：答案2更好", 2),
        ("总体判断：答案1不更好。", "none"),
        ("总体判断：答案1没有答案2好。", "none"),
        ("总体判断：答案1比答案2好。", 1),
        ("因此，答案2比答案1好。", 2),
        ("总体判断：答案1不比答案2好。", "none"),
        ("总体判断：答案1很好。", "none"),
        ("总体判断：答案1不如答案2。", "none"),
        ("总体判断：答案1不比答案2更好。", "none"),
        ("总体判断：无法判断。", "none"),
        ("抱歉，我无法回答。", "none"),
        ("总体判断：Answer 2 is better.", 2),
        ("Gesamturteil: Antwort 2 ist besser.", 2),
        ("Gesamturteil: Antwort 2 ist nicht besser.", "none"),
        ("Verdict final : la réponse 1 est meilleure.", 1),
        ("Verdict final : la réponse 1 n'est pas meilleure.", "none"),
        ("Veredicto final: la respuesta 2 es mejor.", 2),
        ("総合判断：回答1の方が良いです。", 1),
        ("総合判断：回答1は回答2より優れている。", 1),
        ("総合判断：回答2の方が回答1よりも良い。", 2),
        ("総合判断：回答1より回答2の方が優れています。", 2),
        ("総合判断：回答2は回答1に比べて優れている。", 2),
        ("総合判断：回答2の方がより正確です。", 2),
        ("総合判断：回答2の方が明らかに良い。", 2),
        ("総合判断：回答2は回答1よりも正確です。", 2),
        ("総合判断：回答2より良い。", "none"),
        ("総合判断：回答2は良いです。", "none"),
        ("総合判断：回答2は正確です。", "none"),
        ("総合判断：回答2は回答1より優れていない。", "none"),
        ("総合判断：回答1の方が良いとは言えません。", "none"),
        ("総合判断：回答2の方が優れているとは限らない。", "none"),
        ("総合判断：回答2の方が良いと思いません。", "none"),
        ("总体判断：回答2相比回答1更好。", 2),
        ("总体判断：与回答2相比，回答1更好。", 1),
        ("总体判断：与回答2相比回答1更好。", 1),
        ("总体判断：两个回答都很好。但是，回答2更好。", 2),
        ("总体判断：很难说回答2更好。", "none"),
        ("总体判断：回答2（错误）", "none"),
        ("Gesamturteil: Die bessere Antwort ist Antwort 2.", 2),
        ("Gesamturteil: Die bessere Antwort ist nicht Antwort 2.", "none"),
        ("Jugement global : je préfère la réponse 2.", 2),
        ("Jugement global : je ne préfère pas la réponse 2.", "none"),
        ("Veredicto final: prefiero la respuesta 2.", 2),
        ("Veredicto final: no prefiero la respuesta 2.", "none"),
    ],
)
def test_other_languages_are_read_by_their_words(text, value):
    assert read(text) == value


def test_a_language_of_ones_own_is_one_more_entry(monkeypatch):
    text = "Giudizio complessivo: la risposta 2 è migliore."
    assert read(text) == "none"
    italian = Language(
        labels=("giudizio complessivo",),
        names=(r"(?:la )?risposta {n}",),
        is_=("è",),
        not_=("non",),
        better=("migliore",),
    )
    monkeypatch.setitem(LANGUAGES, "it", italian)
    assert read(text) == 2
    assert read(text.replace("è", "non è")) == "none"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Overall Judgment: Rating 4.", 4),
        ("Overall Judgment: Rating: 4/5", 4),
        ("Overall Judgment: 4", 4),
        ("Overall Judgment: 4 out of 5.", 4),
        ("Overall Judgment: Rating 4 out of 5 stars.", 4),
        ("Overall Judgment: 4 stars", 4),
        ("Overall Judgment: Rating four.", 4),
        ("Overall Judgment: I would give it a 4.", 4),
        ("Overall Judgment: Rating 4, because two of the cups are missing.", 4),
        ("Overall Judgment: Rating 4. The answer misses 2 cups.", 4),
        ("**Rating:** 4", 4),
        ("**Rating: 4/5**", 4),
        ("### Rating\n4", 4),
        ("Final rating: 4.5", 4.5),
        ("Score: 4.5 / 5", 4.5),
        ("Score: 4.0", 4),
        ("Rating 2.5", 2.5),
        ("Rating = 3", 3),
        ("Clarity rating: 3\nOverall rating: 4", 4),
        ("Overall Judgment: Rating (1-5): 4", 4),
        ("Overall Judgment: Rating on a scale of 1 to 5: 4", 4),
        ("Overall Judgment: The answer misses 2 cups. Rating 3.", 3),
        ("I'd rate this a 4.", 4),
        ("Rating for accuracy: 4", "none"),
        ("Overall Judgment: 2 cups are missing.", "none"),
        ("Overall Judgment: Rating 4 or higher.", "none"),
        ("Overall Judgment: Rating 4, maybe 5.", "none"),
        ("Overall Judgment: Rating 4+", "none"),
        ("Clarity: 3/5\nAccuracy: 5/5\nOverall Judgment: Rating 4.", 4),
        ("\\boxed{4}", 4),
        ("<answer>4</answer>", 4),
        ("<score>3.5</score>", 3.5),
        ('{"evidence": "2 cups", "rating": 4}', 4),
        ('{"score": "4/5"}', 4),
        ("<think>5? No, 3.</think>Rating: 3", 3),
        ("I would rate this answer 4 out of 5.", 4),
        ("I would give it a rating of 4.", 4),
        ("The answer deserves a 4.", 4),
        ("评分：4", 4),
        ("总体判断：评分 4 分。", 4),
        ("评分：4/5", 4),
        ("Bewertung: 4 von 5", 4),
        ("Overall Judgment: Rating 0.", "none"),
        ("Overall Judgment: Rating 6.", "none"),
        ("Overall Judgment: Rating -1.", "none"),
        ("Overall Judgment: Rating 5.5.", "none"),
        ("Overall Judgment: Rating 45.", "none"),
        ("Overall Judgment: Rating 4/10.", "none"),
        ("Overall Judgment: Rating 4 out of 10.", "none"),
        ("Overall Judgment: 80%", "none"),
        ("Overall Judgment: 5%", "none"),
        ("Overall Judgment: Rating 3-4.", "none"),
        ("Overall Judgment: Rating 3 or 4.", "none"),
        ("Overall Judgment: Rating 3 to 4.", "none"),
        ("Overall Judgment: Rating between 3 and 4.", "none"),
        ("Overall Judgment: Rating at least 4.", "none"),
        ("Overall Judgment: Rating not 4.", "none"),
        ("Overall Judgment: Rating N.", "none"),
        ("Overall Judgment: Answer 1 is better.", "none"),
        ("Rating: good", "none"),
        ("4", "none"),
        ("There are 4 cups.", "none"),
        ("The image shows 4 of 5 cups.", "none"),
        ("I am not able to rate this.", "none"),
        ("Rating (out of 5): 4", 4),
        ("Overall Judgment: Rating 4 on a scale of 1 to 5.", 4),
        ("Overall Judgment: Rating 4 on a 5-point scale.", 4),
        ("Overall Judgment: Rating 5 out of 5, excellent", 5),
        ("Rating: 4/5 good", 4),
        ("评分（满分5分）：4", 4),
        ("Rating (1-10): 4", "none"),
        ("Score (0-100): 4", "none"),
        ("Score (out of 10): 4", "none"),
        ("Score from 1 to 10: 4", "none"),
        ("Score: 4 (scale 1-10)", "none"),
        ("Overall Judgment: Rating 4 on a scale of 1 to 10.", "none"),
        ("Overall Judgment: Rating 4 on a 10-point scale.", "none"),
        ("Bewertung: 4 (1-10)", "none"),
        ("评分（满分10分）：4", "none"),
        ("評価：4（10点満点）", "none"),
        ("Overall Judgment: Rating ≥ 4", "none"),
        ("Overall Judgment: Rating: 4 → 3", "none"),
        ("Rating: 2 3", "none"),
        ("Overall Judgment: 4 out of 5 cups are named.", "none"),
        ("The answer scores 4 right objects.", "none"),
        ("Note: 4 cups are visible.", "none"),
        ("I rate Answer 1 a 4.", 4),
        ("Rating: 3\nRating: 4", "both"),
        ("Overall Judgment: Rating 3. Overall Judgment: Rating 4.", "both"),
    ],
)
def test_ratings(text, value):
    assert read(text, "pointwise") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Overall Judgment: Rating 4", "truncated"),
        ("Overall Judgment: Rating", "truncated"),
        ("Overall Judgment: Rating 4.", 4),
        ("Overall Judgment: Rating 4/5", 4),
    ],
)
def test_a_cut_rating_may_have_gone_on(text, value):
    assert read(text, "pointwise", truncated=True) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Overall Judgment: Ranking 2 > 1 > 3.", (2, 1, 3)),
        ("**Overall Judgment:** **Ranking** 2 > 1 > 3", (2, 1, 3)),
        ("Overall Judgment: 2 > 1 > 3", (2, 1, 3)),
        ("Overall Judgment:\nAnswer 2 > Answer 1 > Answer 3", (2, 1, 3)),
        ("Overall Judgment: Answer 2, Answer 1, Answer 3.", (2, 1, 3)),
        ("Overall Judgment: 2, 1, and 3", (2, 1, 3)),
        ("Overall Judgment: 2, then 1, then 3.", (2, 1, 3)),
        ("Overall Judgment: Answer 2, followed by Answer 1, followed by Answer 3.", (2, 1, 3)),
        ("Overall Judgment: [2, 1, 3]", (2, 1, 3)),
        ("Overall Judgment: 2 -> 1 -> 3", (2, 1, 3)),
        ("Overall Judgment: 2 → 1 → 3", (2, 1, 3)),
        ("Overall Judgment: 3 < 1 < 2", (2, 1, 3)),
        ("Overall Judgment: $2 \\succ 1 \\succ 3$", (2, 1, 3)),
        ("Overall Judgment: 2 &gt; 1 &gt; 3", (2, 1, 3)),
        ("Overall Judgment: Answer 2 is better than Answer 1, which is the rest. ", "none"),
        ("Ranking: 2 > 1 > 3", (2, 1, 3)),
        ("Ranking (best to worst): 2 > 1 > 3", (2, 1, 3)),
        ("Final ranking: Answer 2 > Answer 1 > Answer 3", (2, 1, 3)),
        ("Overall Judgment: Ranking 2 > 1 > 3, because Answer 3 misses the book.", (2, 1, 3)),
        ("Overall Judgment:\n1. Answer 2\n2. Answer 1\n3. Answer 3", (2, 1, 3)),
        ("Overall Judgment:\n1st: Answer 2\n2nd: Answer 1\n3rd: Answer 3", (2, 1, 3)),
        (
            "Ranking:\n1. **Answer 2**: counts right\n2. **Answer 1**: misses the book\n3. **Answer 3**: wrong",
            (2, 1, 3),
        ),
        ("Overall Judgment: Best: Answer 2, second: Answer 1, worst: Answer 3", (2, 1, 3)),
        ("\\boxed{2 > 1 > 3}", (2, 1, 3)),
        ("<answer>2 > 1 > 3</answer>", (2, 1, 3)),
        ('{"ranking": [2, 1, 3]}', (2, 1, 3)),
        ('{"ranking": ["Answer 2", "Answer 1", "Answer 3"]}', (2, 1, 3)),
        ('{"ranking": "2 > 1 > 3"}', (2, 1, 3)),
        ("Two cups.\n2 > 1 > 3", (2, 1, 3)),
        ("Two cups. Therefore, Answer 2 > Answer 1 > Answer 3.", (2, 1, 3)),
        ("排名：2 > 1 > 3", (2, 1, 3)),
        ("总体判断：答案2 > 答案1 > 答案3。", (2, 1, 3)),
        ("Overall Judgment: Ranking 2 > 1.", "none"),
        ("Overall Judgment: Ranking 2 > 1 > 1.", "none"),
        ("Overall Judgment: Ranking 2 > 1 > 4.", "none"),
        ("Overall Judgment: Ranking 1 > 2 > 3 > 4.", "none"),
        ("Overall Judgment: Ranking 2 > 1 < 3.", "none"),
        ("Overall Judgment: Ranking 2 > 1 = 3.", "none"),
        ("Overall Judgment: Ranking 2 > 1, 3.", "none"),
        ("Overall Judgment: Answer 2 (best) > Answer 1 > Answer 3 (worst)", (2, 1, 3)),
        ("Overall Judgment: Ranking, for example 2 > 1 > 3.", "none"),
        ("Overall Judgment: Ranking, worst first: 2 > 1 > 3.", "none"),
        ("Overall Judgment: 2, 1, 3 (worst to best)", "none"),
        ("Overall Judgment: Answer 1: 3, Answer 2: 1, Answer 3: 2", "none"),
        ("Overall Judgment: not 2 > 1 > 3", "none"),
        ("Overall Judgment: 2 > 1 > 3 or 1 > 2 > 3", "none"),
        ("Overall Judgment: Answer 2 is better.", "none"),
        ("Two cups. Answer 2, Answer 1, Answer 3.", "none"),
        ("Overall Judgment: Answer 1, Answer 2, and Answer 3 all miss the book.", "none"),
        ("Overall Judgment: 1, 2, 3 are listed.", "none"),
        ("Overall Judgment: Answer 1 and Answer 2 are better than Answer 3.", "none"),
        ("Overall Judgment: Answer 3 is better than Answer 1 and Answer 2.", "none"),
        ("Overall Judgment: Answer 2, Answer 1 and Answer 3, in that order.", (2, 1, 3)),
        ("排序（从差到好）：2, 1, 3", "none"),
        ("There are 2, 1, 3 cups.", "none"),
        ("Ranking: 2 > 1 > 3\nRanking: 1 > 2 > 3", "both"),
    ],
)
def test_rankings(text, value):
    assert read(text, "ranking") == value


def test_equal_places_of_a_ranking_are_a_tie():
    reading = read_verdict("Overall Judgment: Ranking 2 > 1 = 3.", "ranking", 3)
    assert (reading.status, reading.tie) == ("none", True)


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        (f"{SEEN}\nOverall Judgment: Answer 1 is better.", SEEN),
        (f"**Evidence:** {SEEN}\n\n**Overall Judgment:** Answer 1 is better.", SEEN),
        (f"### Evidence\n{SEEN}\n\n### Overall Judgment\nAnswer 1 is better.", SEEN),
        (f"<think>Hm, 2?</think>\n{SEEN} Therefore, Answer 1 is better.", SEEN),
        (f'{{"evidence": "{SEEN}", "verdict": "Answer 1"}}', SEEN),
        ("The **red** ½ book.\nOverall Judgment: Answer 1 is better.<|im_end|>", "The red ½ book."),
        ("Overall Judgment: Answer 1 is better.", ""),
        ("I cannot tell.", "I cannot tell."),
    ],
)
def test_evidence_is_what_stands_before_the_verdict(text, evidence):
    assert read_verdict(text).evidence == evidence


def test_a_span_stands_in_the_text_as_it_was_given():
    text = "①　<think>Answer 2</think>\r\nＡ ½ **Overall Judgment:** \\boxed{Answer\u00a0２ is better}. Answer 1: 1."
    reading = read_verdict(text)
    assert quoted(text, reading) == "２"
    ranking = "Overall Judgment: **Answer 3** > Answer 1 > **Answer 2**."
    assert quoted(ranking, read_verdict(ranking, "ranking", 3)) == "3** > Answer 1 > **Answer 2"


def test_a_judge_that_repeats_itself_on_one_line_is_read():
    text = "Overall Judgment: Answer 1 is better. " * 300
    reading = read_verdict(text)
    assert (reading.value, len(reading.spans)) == (1, 300)
    assert read(f"{text}Overall Judgment: Answer 2 is better.") == "both"


def test_every_label_with_the_verdict_is_a_span():
    text = "Overall Judgment: Answer 1 is better. So the verdict: Answer 1. Answer 1 it is."
    reading = read_verdict(text)
    assert [begin for begin, _ in reading.spans] == [text.index("1"), text.index("1.", 40)]


def test_a_verdict_is_of_the_item_whatever_the_order_it_was_shown_in():
    text = "Overall Judgment: Answer 1 is better."
    assert [read_verdict(text).in_items(order).winner for order in ((0, 1), (1, 0))] == [0, 1]
    ranking = read_verdict("Overall Judgment: Ranking 3 > 1 > 2.", "ranking", 3).in_items((2, 0, 1))
    assert ranking.ranking == (1, 2, 0)
    assert read_verdict("Overall Judgment: Rating 4.5.", "pointwise", 1).in_items((1,)).rating == 4.5
    tie = read_verdict("Overall Judgment: It is a tie.").in_items((0, 1))
    assert (tie.winner, tie.tie) == (None, True)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("So.\nOverall Judgment: Answer 2 is better.", "pairwise"),
        ("So.\n**Overall Judgment:** Answer 2", "pairwise"),
        ("Overall Judgment: Rating 4.", "pointwise"),
        ("Overall Judgment: Ranking 2 > 1 > 3.", "ranking"),
        ("Answer 2 is better.", None),
        ("Overall Judgment: Answer 3 is better.", None),
    ],
)
def test_the_task_of_a_judgment_is_that_of_its_labelled_verdict(text, task):
    recognised = recognise_verdict(text)
    assert (recognised and recognised[0]) == task
    if recognised:
        begin = recognised[1].begin
        assert begin is not None
        assert text[begin:].startswith("Overall Judgment")


def test_the_document_shows_what_is_read(monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    section = page.split("## How a verdict is read")[1].split("\n## ")[0]
    first, second = re.findall(r"```python\n(.+?)```", section, re.DOTALL)
    shown: dict[str, Any] = {}
    exec(first, shown)
    reading = shown["reading"]
    assert (reading.status, reading.value, reading.evidence, reading.span) == ("ok", 2, "Two cups.", (40, 41))
    monkeypatch.setitem(LANGUAGES, "it", Language())
    exec(second, shown)
    assert read("Verdetto: risposta 2 è migliore.") == 2
    assert read("Verdetto: risposta 2 non è migliore.") == "none"
