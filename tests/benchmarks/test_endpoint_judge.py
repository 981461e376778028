"""A judge behind HTTP, on a real local server: what is sent, what comes back, and what goes wrong on the way."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from carevl.benchmarks import rows as benchmark_rows
from carevl.benchmarks.answering import judge_questions
from carevl.benchmarks.command import PREDICTIONS, EvalRequest, evaluate
from carevl.benchmarks.data import load
from carevl.benchmarks.endpoint import Endpoint
from carevl.benchmarks.predictions import from_table
from carevl.benchmarks.questions import GREEDY
from carevl.benchmarks.run import EvalSet, JudgeRun, predict
from carevl.benchmarks.suites import SUITES
from carevl.errors import UserError
from carevl.judging.verdict_tokens import VERDICT_TEXTS
from carevl.models import chat_client
from carevl.models.engines.base import GenerationRequest
from carevl.settings.models import Judge
from carevl.store.run import RunError
from carevl.store.table import Table

SECRET = "sk-very-secret"
TEXT = "There is one circle.\nOverall Judgment: Answer 2 is better."


def completion(text=TEXT, finish="stop", logprobs=None):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {
        "choices": [choice | ({"logprobs": {"content": logprobs}} if logprobs else {})],
        "usage": {"completion_tokens": 9},
    }


class Served(ThreadingHTTPServer):
    requests: list[Any]
    replies: list[Any]
    address: str


@pytest.fixture
def server(monkeypatch):
    """A server that answers with what `replies` holds, in turn, then with a completion; it notes every request."""
    monkeypatch.setattr(chat_client, "_WAIT", 0.001)
    monkeypatch.delenv("CAREVL_API_KEY", raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                served.requests.append((self.path, dict(self.headers), body))
                status, content, headers = served.replies.pop(0) if served.replies else (200, completion(), {})
            self.send_response(status)
            if callable(content):
                self.end_headers()
                content(self.wfile)
                return
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    lock = threading.Lock()
    served = Served(("127.0.0.1", 0), Handler)
    served.requests, served.replies = [], []
    served.address = f"http://127.0.0.1:{served.server_port}/v1#tiny"
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def _judge(address, **settings):
    return Endpoint(Judge(path=address, max_tokens=64, endpoint={"concurrency": 1, **settings}))


def _ask(server, n=1, logprob_texts=(), **settings):
    requests = [GenerationRequest((Image.new("RGB", (4, 3), "red"),), f"prompt {i}", seed=i) for i in range(n)]
    return _judge(server.address, **settings).answer(requests, GREEDY, logprob_texts)


def test_prompt_and_image_are_sent_and_the_text_comes_back(server):
    [answer] = _ask(server)
    assert (answer.text, answer.truncated, answer.tokens) == (TEXT, False, 9)
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert (body["model"], body["max_tokens"], body["temperature"], "logprobs" in body) == ("tiny", 64, 0.0, False)
    image, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "prompt 0"}
    sent = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(sent)).size == (4, 3)


def test_answers_keep_their_order_and_a_cut_one_says_so(server):
    server.replies = [(200, completion(finish="length"), {})]
    answers = _ask(server, n=8, concurrency=4)
    assert [answer.truncated for answer in answers].count(True) == 1
    assert sorted(body["messages"][0]["content"][1]["text"] for *_, body in server.requests) == [
        f"prompt {i}" for i in range(8)
    ]


def test_a_busy_endpoint_is_asked_again(server):
    server.replies = [(429, {"error": "slow down"}, {"Retry-After": "0"}), (503, b"<html>", {}), (200, b"not json", {})]
    [answer] = _ask(server)
    assert answer.text == TEXT
    assert len(server.requests) == 4


def test_an_endpoint_that_stays_busy_is_a_row_error(server):
    server.replies = [(500, {"error": "out of memory"}, {})] * 6
    [answer] = _ask(server)
    assert answer.startswith("status 500")
    assert answer.endswith("given up after 5 more tries")
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((400, {"error": "prompt is too long"}, {}), "status 400.*too long"),
        ((200, {"choices": []}, {}), "a completion without choices"),
        ((200, [], {}), "not a chat completion: a list"),
        ((200, {"error": {"message": "upstream is\ndown"}}, {}), "an error in place of a completion: upstream is down"),
        ((422, {"error": "odd image"}, {}), "status 422.*odd image"),
    ],
)
def test_a_refused_question_fails_alone(server, reply, message):
    server.replies = [reply]
    refused, answer = _ask(server, n=2)
    assert re.search(message, refused)
    assert answer.text == TEXT


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            (401, {"error": f"no such key {SECRET}"}, {}),
            r"status 401.*\[key\].*check the address, the model tiny and the",
        ),
        ((404, {"error": "no such model"}, {}), "status 404.*check the address, the model tiny and the key"),
        (
            (308, b"", {"Location": "https://other/v1"}),
            "status 308.*redirects to https://other/v1, where nothing is sent",
        ),
    ],
)
def test_what_refuses_the_first_question_refuses_all_and_is_asked_once(server, monkeypatch, reply, message):
    monkeypatch.setenv("CAREVL_API_KEY", SECRET)
    server.replies = [reply]
    with pytest.raises(UserError, match=message) as caught:
        _ask(server, n=20, concurrency=8)
    assert SECRET not in str(caught.value)
    assert server.requests[0][1]["Authorization"] == f"Bearer {SECRET}"
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 307])
def test_a_later_question_that_is_refused_fails_alone(server, status):
    server.replies = [(200, completion(), {}), (status, {"error": "not this one"}, {"Location": "/elsewhere"})]
    first, refused, last = _ask(server, n=3)
    assert refused.startswith(f"status {status}")
    assert first.text == last.text == TEXT
    assert len(server.requests) == 3


def test_a_key_that_no_header_takes_is_refused_and_not_shown(server, monkeypatch):
    monkeypatch.setenv("CAREVL_API_KEY", f"{SECRET}\n{SECRET}")
    with pytest.raises(UserError, match="CAREVL_API_KEY holds characters that no key has") as caught:
        _judge(server.address)
    assert SECRET not in str(caught.value)


def test_a_key_never_travels_unencrypted(monkeypatch):
    monkeypatch.setenv("CAREVL_API_KEY", SECRET)
    with pytest.raises(UserError, match=r"http://judges\.example/v1 is not encrypted"):
        _judge("http://judges.example/v1#tiny")
    _judge("https://judges.example/v1#tiny")


def test_nobody_there_and_no_model_are_said_in_one_line(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"127\.0\.0\.1.* cannot be reached"):
        _ask(server)
    with pytest.raises(UserError, match="name the model after the address, like http://h/v1#MODEL"):
        _judge("http://h/v1")


def test_an_answer_that_is_too_long_is_a_row_error(server, monkeypatch):
    monkeypatch.setattr(chat_client, "_MOST_BYTES", 10_000)
    server.replies = [(200, completion("a" * 20_000), {})]
    refused, answer = _ask(server, n=2)
    assert refused.startswith("the answer has more than")
    assert answer.text == TEXT


def test_an_answer_that_never_ends_is_a_row_error(server):
    def trickle(stream):
        with contextlib.suppress(OSError):
            while True:
                stream.write(b" ")
                time.sleep(0.02)

    server.replies = [(200, completion(), {}), (200, trickle, {})]
    first, refused, answer = _ask(server, n=3, timeout=2, retries=0)
    assert refused.startswith("ReadTimeout: the answer had not ended after 2 seconds")
    assert first.text == answer.text == TEXT


REFUSALS = [
    (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "endpoint.max_tokens_field: max_completion_tokens sends that in its place",
        {"max_tokens_field": "max_completion_tokens"},
        "max_tokens",
    ),
    (
        "Unsupported value: 'temperature' does not support 0 with this model.",
        "endpoint.omit: [temperature] leaves it out",
        {"omit": ["temperature"]},
        "temperature",
    ),
    (
        "Unrecognized request argument supplied: seed",
        "endpoint.omit: [seed] leaves it out",
        {"omit": ["seed"]},
        "seed",
    ),
]


@pytest.mark.parametrize(("words", "way_out", "settings", "field"), REFUSALS)
def test_a_field_that_is_refused_is_named_with_the_setting_that_leaves_it_out(server, words, way_out, settings, field):
    server.replies = [(400, {"error": {"message": words}}, {})]
    with pytest.raises(UserError, match="status 400") as caught:
        _ask(server, n=9)
    assert str(caught.value).endswith(f"; {way_out}")
    assert len(server.requests) == 1
    [answer] = _ask(server, **settings)
    assert answer.text == TEXT
    assert field not in server.requests[1][2]


def test_log_probabilities_of_ones_own_are_a_field_like_any_other(server):
    server.replies = [(400, {"error": "top_logprobs is not supported"}, {})] * 9
    with pytest.raises(UserError, match=r"; endpoint\.extra_body sets top_logprobs"):
        _ask(server, n=9, logprob_texts=VERDICT_TEXTS, extra_body={"top_logprobs": 5})
    assert len(server.requests) == 2


def test_what_a_server_says_is_shown_as_text_that_prints(server):
    server.replies = [(400, b"\x1b[31mno\x00\nway\xff", {})]
    refused, _ = _ask(server, n=2)
    assert refused == "status 400: [31mno way\ufffd"


def test_fields_of_ones_own_are_sent_and_replace_carevls(server):
    server.replies = [(200, completion(), {}), (400, {"error": "top_k: Extra inputs are not permitted"}, {})]
    _, refused = _ask(server, n=2, extra_body={"top_k": 1, "top_p": 0.5}, max_tokens_field="max_completion_tokens")
    assert refused.endswith("; endpoint.extra_body sets top_k")
    body = server.requests[0][2]
    assert (body["top_k"], body["top_p"], body["max_completion_tokens"]) == (1, 0.5, 64)


def test_a_model_whose_name_is_that_of_a_field_is_not_taken_for_it(server):
    server.address = server.address.replace("#tiny", "#seed")
    server.replies = [(404, {"error": "The model 'seed' does not exist"}, {})]
    with pytest.raises(UserError, match="check the address, the model seed and the key"):
        _ask(server)


@pytest.mark.parametrize("words", ["'max_tokens' is too large: 64 > 50", "max_tokens must be at least 1, got -12"])
def test_a_prompt_that_is_too_long_is_no_refused_field(server, words):
    server.replies = [(400, {"error": words}, {})]
    refused, answer = _ask(server, n=2)
    assert refused.endswith(f'{words}"}}')
    assert answer.text == TEXT


def test_thoughts_that_stand_apart_are_kept_apart(server, pairs, tmp_path):
    thought = completion()
    thought["choices"][0]["message"] |= {"reasoning_content": "[[A]] Overall Judgment: Answer 1 is better."}
    server.replies = [(200, thought, {})]
    eval_set = EvalSet("vl-rewardbench", pairs[:1], ["strict"])
    predict([JudgeRun(Judge(path=server.address), "j", Table(tmp_path))], [eval_set], lambda *_: None)
    predictions = {p.reasoning: p for p in from_table(Table(tmp_path).read())}
    assert set(predictions) == {None, "[[A]] Overall Judgment: Answer 1 is better."}
    assert {(p.text, p.status) for p in predictions.values()} == {(TEXT, "ok")}


def test_a_body_that_json_does_not_read_is_asked_for_again(server):
    server.replies = [(200, b"[" * 100_000, {}), (200, b"\xff\xfe", {}), (200, b"x", {"Content-Encoding": "gzip"})]
    [answer] = _ask(server)
    assert answer.text == TEXT
    assert len(server.requests) == 4


def test_watched_tokens_are_found_among_the_likeliest(server):
    positions = [{"token": "There", "top_logprobs": [{"token": "There", "logprob": -0.1}]}]
    positions += [{"token": " 2", "top_logprobs": [{"token": " 2", "logprob": -0.2}, {"token": " 1", "logprob": -2.0}]}]
    server.replies = [(200, completion(logprobs=positions), {})]
    [answer] = _ask(server, logprob_texts=VERDICT_TEXTS)
    assert answer.logprobs[1][VERDICT_TEXTS.index(" 2")] == -0.2
    assert answer.logprobs[1][VERDICT_TEXTS.index("2")] == -math.inf
    assert server.requests[0][2]["top_logprobs"] == 20


@pytest.mark.parametrize(
    "refusal",
    [
        (400, {"error": "logprobs are not supported"}, {}),
        (422, {"error": "top_logprobs must be at most 5"}, {}),
        (403, {"error": "You may not request logprobs from this model"}, {}),
    ],
)
def test_an_endpoint_without_log_probabilities_is_asked_without(server, refusal):
    server.replies = [refusal]
    answers = _ask(server, n=3, logprob_texts=VERDICT_TEXTS)
    assert [answer.text for answer in answers] == [TEXT] * 3
    assert ["logprobs" in body for *_, body in server.requests] == [True, False, False, False]


@pytest.fixture
def pairs(pair):
    def image(n):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (n, 0, 0)).save(buffer, "PNG")
        return benchmark_rows.Image(f"image {n}", data=buffer.getvalue())

    return [pair(f"k{n}", images=(image(n),)) for n in range(3)]


def test_a_benchmark_is_asked_without_any_cluster(server, pairs, tmp_path):
    judge = Judge(path=server.address)
    server.replies = [(200, completion("nothing to say"), {})]
    test = EvalSet("vl-rewardbench", pairs, ["official_scorer", "strict"])
    counts = predict([JudgeRun(judge, judge.path, Table(tmp_path))], [test], lambda *_: None)[judge.path]
    predictions = from_table(Table(tmp_path).read())
    assert counts == {"rows_in": 21, "rows_out": 21, "errors": 0, "rows_taken": 0}
    assert len(server.requests) == 6
    assert {p.judge for p in predictions} == {server.address}
    assert {p.winner for p in predictions if p.status == "ok"} == {0, 1}
    assert any(p.status == "none" for p in predictions)


def test_an_image_that_cannot_be_shown_is_an_error_of_its_questions(server, pairs, pair, tmp_path):
    judge = Judge(path=server.address)
    drawn = pair("drawn", images=(benchmark_rows.Image("a + b", error="images in responses: 2"),))
    test = EvalSet("multimodal-rewardbench-2", [pairs[0], drawn], ["strict"])
    counts = predict([JudgeRun(judge, "j", Table(tmp_path))], [test], lambda *_: None, max_error_fraction=0.5)["j"]
    assert (counts["errors"], len(server.requests)) == (2, 2)
    errors = {(p.key, p.error and p.error["message"]) for p in from_table(Table(tmp_path).read())}
    assert errors == {(pairs[0].key, None), ("drawn", "images in responses: 2")}
    lines: list[str] = []
    predict([JudgeRun(judge, "j", Table(tmp_path))], [test], lambda *_: None, max_error_fraction=0.5, log=lines.append)
    assert (lines, len(server.requests)) == ([], 2)


def _shown(body):
    """Return the texts and the red of the images that a request has, in their order."""
    [message] = body["messages"]
    parts = []
    for part in message["content"]:
        if part["type"] == "text":
            parts.append(part["text"].partition("\n")[0])
        else:
            sent = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
            parts.append(Image.open(io.BytesIO(sent)).getpixel((0, 0))[0])
    return parts


def test_images_stand_in_their_places_and_more_than_the_judge_takes_are_not_sent(server, pairs, pair, tmp_path):
    images = [row.images[0] for row in pairs]
    rows = [
        pair("none"),
        pair("one", images=(images[1],)),
        pair("two", images=(images[2], images[1]), places=(0, 5)),
        pair("many", images=(*images, images[0])),
    ]
    test, target, lines = EvalSet("pairwise", rows, ["strict"]), Table(tmp_path), []

    def ask(max_images):
        judge = Judge(path=server.address, max_images=max_images, endpoint={"concurrency": 1})
        run = JudgeRun(judge, "j", target)
        return predict([run], [test], lambda *_: None, max_error_fraction=0.5, log=lines.append)["j"]

    assert ask(3) == {"rows_in": 8, "rows_out": 8, "errors": 2, "rows_taken": 0}
    assert [_shown(body) for *_, body in server.requests[::2]] == [
        ["Question: Which?"],
        [1, "Look at the image. Question: Which?"],
        ["Look at the images. Question: ", 2, "Which", 1, "?"],
    ]
    errors = {(p.key, p.error["message"].partition(";")[0]) for p in from_table(target.read()) if p.error}
    assert errors == {("many", "its prompt has 4 images, and max_images of the judge is 3")}
    assert (ask(3)["errors"], len(server.requests), lines) == (2, 6, [])
    assert ask(4)["errors"] == 0
    assert lines == ["j: 2 questions that failed are asked again; answers are kept"]
    assert [_shown(body) for *_, body in server.requests[6:]] == [
        [0, 1, 2, 0, "Look at the images. Question: Which?"]
    ] * 2


def test_the_same_command_with_a_higher_bound_asks_what_had_too_many_images(server, tmp_path):
    for n in (1, 2):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / f"{n}.png")
    pair = {"responses": ["a", "b"], "better": 1}
    rows = [
        {"id": 1, "question": "What?"},
        {"id": 2, "question": "Is <image> it?", "images": ["1.png"]},
        {"id": 3, "question": "Is <image> like <image>?", "images": ["2.png", "1.png"]},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair | row) for row in rows))
    data = load("pairwise", tmp_path / "pairs.jsonl")

    def errors(max_images):
        request = EvalRequest(server.address, overrides=[f"max_images={max_images}"], max_error_fraction=0.5)
        list(evaluate(data, request, tmp_path / "out", lambda _: None))
        figures = json.loads((tmp_path / "out/figures.json").read_text())
        return figures["judges"][server.address]["strict"]["errors"]

    assert (errors(1), len(server.requests)) == (2, 4)
    assert (errors(2), len(server.requests)) == (0, 6)
    assert _shown(server.requests[-1][2]) == ["Look at the images. Question: Is ", 2, " like ", 1, "?"]
    assert _shown(server.requests[2][2]) == ["Look at the image. Question: Is ", 1, " it?"]


@pytest.mark.parametrize("retry", [False, True])
def test_failed_questions_are_asked_again_and_no_others(server, pairs, tmp_path, retry):
    target = Table(tmp_path)
    asked_of = [JudgeRun(Judge(path=server.address), "j", target)]
    tests = [EvalSet("vl-rewardbench", pairs, ["official_scorer", "strict"])]
    lines = []

    def ask(retry):
        return predict(
            asked_of,
            tests,
            lambda *_: None,
            max_error_fraction=1.0,
            part_questions=7,
            retry=retry,
            log=lines.append,
        )["j"]

    server.replies = [(400, {"error": "out of luck"}, {})] * 2
    first = ask(retry=False)
    assert first["errors"] > 0
    before = [target.read(number).to_pylist() for number in target.parts()]
    n_requests = len(server.requests)
    assert lines == []
    assert ask(retry) == {**first, "errors": 0}
    assert lines == [f"j: {first['errors']} questions that failed are asked again; answers are kept"]
    assert len(server.requests) == n_requests + 2
    for number, rows in zip(target.parts(), before, strict=True):
        after = target.read(number).to_pylist()
        assert [row for row in rows if row["error"] is None] == after[: len(rows) - sum(bool(r["error"]) for r in rows)]
        assert len(after) == len(rows)
        assert {row["text"] for row in after} == {TEXT}
    assert ask(retry)["errors"] == 0
    assert len(server.requests) == n_requests + 2
    assert {path.name for path in tmp_path.iterdir()} == {target.part(number).name for number in target.parts()}


def test_missing_parts_and_failed_questions_are_asked_in_one_go(server, pairs, tmp_path):
    target = Table(tmp_path)
    asked_of = [JudgeRun(Judge(path=server.address), "j", target)]

    def ask():
        tests = [EvalSet("vl-rewardbench", pairs, ["strict"])]
        return predict(asked_of, tests, lambda *_: None, max_error_fraction=1.0, part_questions=2)["j"]

    server.replies = [(200, completion(), {}), (403, {}, {})]
    assert ask()["errors"] == 1
    target.part(2).unlink()
    n_requests = len(server.requests)
    assert ask() == {"rows_in": 6, "rows_out": 6, "errors": 0, "rows_taken": 0}
    assert len(server.requests) == n_requests + 3


@pytest.fixture
def rows_file(tmp_path):
    """Three rows, about which 6 questions are asked under `strict`."""
    row = {"response": ["A cup.", "A dog."], "human_ranking": [0, 1], "image": "a.png"}
    rows = [json.dumps({"id": f"RLHF-V-{n}", "query": f"What {n}?", **row}) for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path / "rows.jsonl"


def _evaluate(server, rows_file, **options):
    """Evaluate under `strict`; return the log and the errors that are left."""
    lines: list[str] = []
    request = EvalRequest(server.address, **{"protocols": ["strict"], **options})
    out = rows_file.parent / "out"
    list(evaluate(load("vl-rewardbench", rows_file), request, out, lines.append))
    table = pq.read_table(out / PREDICTIONS)
    return lines, len(table) - table["error"].null_count


def test_the_same_command_asks_again_what_failed_and_keeps_what_was_paid_for(server, rows_file):
    again = "2 questions that failed are asked again; answers are kept"
    server.replies = [(200, completion(), {})] * 4 + [(400, {"error": "not now"}, {})] * 2
    with pytest.raises(RunError, match=r"2 of 6 questions failed.*not now.*; the same command asks them again"):
        _evaluate(server, rows_file)
    assert len(server.requests) == 6
    server.replies = [(400, {"error": "not now"}, {})]
    lines, errors = _evaluate(server, rows_file, max_error_fraction=0.2)
    assert (lines[0], errors, len(server.requests)) == (f"{server.address}: {again}", 1, 8)
    lines, errors = _evaluate(server, rows_file, max_error_fraction=0.2)
    assert (again.replace("2", "1") in lines[0], errors, len(server.requests)) == (True, 0, 9)
    lines, errors = _evaluate(server, rows_file, max_error_fraction=0.2)
    assert (lines, errors, len(server.requests)) == ([], 0, 9)


def test_a_judge_is_asked_as_its_settings_say(server, pairs, tmp_path):
    asking = {
        "pairwise": "{question}\n{answers}\nWhich?",
        "system": "You judge.",
        "image_first": False,
        "template_kwargs": {"enable_thinking": False},
    }
    judge = Judge(path=server.address, asking=asking)
    test = EvalSet("vl-rewardbench", pairs[:1], ["strict"])
    predict([JudgeRun(judge, "j", Table(tmp_path))], [test], lambda *_: None)
    for *_, body in server.requests:
        system, user = body["messages"]
        assert system == {"role": "system", "content": "You judge."}
        assert [part["type"] for part in user["content"]] == ["text", "image_url"]
        assert user["content"][0]["text"].endswith("\nWhich?")
        assert body["chat_template_kwargs"] == {"enable_thinking": False}


def _continued(text="2 is", prompt_tokens=40):
    tops = [{"token": "2", "logprob": math.log(0.7)}, {"token": "1", "logprob": math.log(0.2)}]
    reply = completion(text, "length", [{"token": "2", "top_logprobs": tops}, {"top_logprobs": [tops[0]]}])
    reply["usage"]["prompt_tokens"] = prompt_tokens
    return reply


def _ended(prompt_tokens=44):
    reply = completion()
    reply["usage"]["prompt_tokens"] = prompt_tokens
    return reply


def test_a_verdict_is_forced_where_the_endpoint_goes_on_with_a_reply(server, rows_file):
    server.replies = [(200, _ended(), {})] + [(200, _continued(), {})] * 7
    _, errors = _evaluate(server, rows_file, protocols=["verdict_prob"])
    assert (errors, len(server.requests)) == (0, 2 + 6)
    ended, *begun = [body for *_, body in server.requests]
    assert "continue_final_message" not in ended
    for body in begun:
        assert body["messages"][-1] == {"role": "assistant", "content": "Overall Judgment: Answer"}
        assert (body["continue_final_message"], body["add_generation_prompt"], body["logprobs"]) == (True, False, True)
    assert [body["max_tokens"] for *_, body in server.requests] == [1, 1] + [2] * 6
    for row in pq.read_table(rows_file.parent / "out" / PREDICTIONS).to_pylist():
        assert (row["status"], row["text"]) == ("ok", "Overall Judgment: Answer 2 is better.")
        assert row["winner"] == row["order"][1]
        first_is_better = (0.2 if row["order"] == [0, 1] else 0.7) / 0.9
        assert row["probability"] == pytest.approx(first_is_better)


NOT_CONTINUED = [
    (
        [(200, _ended(), {}), (200, _continued(prompt_tokens=44), {})] * 3,
        "44 tokens with continue_final_message, and 44",
    ),
    ([(200, completion(), {}), (200, _continued(), {})] * 3, "does not count the tokens of prompts"),
    ([(200, _ended(), {}), (200, _ended(40), {})] * 3, "its answer has no log-probabilities"),
    (
        [(200, _ended(), {}), (400, {"error": "continue_final_message: Extra inputs are not permitted"}, {})] * 3,
        "status 400",
    ),
]


@pytest.mark.parametrize(("replies", "reason"), NOT_CONTINUED)
def test_an_endpoint_that_does_not_go_on_with_a_reply_is_refused_before_anything_is_paid(
    server, rows_file, replies, reason
):
    server.replies = replies
    with pytest.raises(UserError, match=rf"verdict_prob: .*{reason}.*; use --protocol strict") as caught:
        _evaluate(server, rows_file, protocols=["strict", "verdict_prob"])
    assert str(caught.value).count("\n") == 0
    assert {body["max_tokens"] for *_, body in server.requests} == {1}


def test_a_question_that_is_refused_does_not_tell_whether_a_reply_is_gone_on_with(server, rows_file):
    server.replies = [(400, {"error": "too many pixels"}, {}), (200, _ended(), {})] + [(200, _continued(), {})] * 7
    _, errors = _evaluate(server, rows_file, protocols=["verdict_prob"])
    assert (errors, len(server.requests)) == (0, 3 + 6)


def _force(server, rows_file, replies):
    server.replies = [(200, completion("There is a cup", "length"), {})] + [(200, completion(), {})] * 5 + replies
    _evaluate(server, rows_file, force_verdicts=True)
    rows = pq.read_table(rows_file.parent / "out" / PREDICTIONS).to_pylist()
    return [row for row in rows if row["text"] != TEXT], [body for *_, body in server.requests[6:]]


def test_a_cut_judgment_goes_on_with_its_verdict_where_the_endpoint_goes_on_with_replies(server, rows_file):
    [row], [ended, *begun] = _force(server, rows_file, [(200, _ended(), {})] + [(200, _continued(), {})] * 2)
    assert (row["text"], row["forced"]) == ("There is a cup\nOverall Judgment: Answer 2 is better.", True)
    assert row["probability"] == pytest.approx((0.2 if row["order"] == [0, 1] else 0.7) / 0.9)
    assert "continue_final_message" not in ended
    assert [body["messages"][-1]["content"] for body in begun] == ["There is a cup\nOverall Judgment: Answer"] * 2


def _state(server, rows_file, replies):
    """Do as `_force` where the endpoint does not go on with replies, as two answers show."""
    rows, [_, _, *bodies] = _force(server, rows_file, [(200, completion(), {})] * 2 + replies)
    return rows, bodies


def test_a_cut_judgment_is_asked_for_its_verdict_in_a_further_turn(server, rows_file):
    [row], [body] = _state(server, rows_file, [(200, completion('{"verdict": 1}'), {})])
    assert (row["text"], row["status"]) == ("There is a cup\nOverall Judgment: Answer 1 is better.", "ok")
    assert (row["winner"], row["forced"], row["probability"]) == (row["order"][0], True, None)
    first, said, further = body["messages"]
    assert said == {"role": "assistant", "content": "There is a cup"}
    assert (first["role"], further["role"]) == ("user", "user")
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"verdict": {"type": "integer", "enum": [1, 2]}}


def test_an_endpoint_without_schemas_is_asked_without_and_read_alike(server, rows_file):
    refusal = (400, {"error": "response_format is not supported"}, {})
    [row], bodies = _state(server, rows_file, [refusal, (200, completion("Answer 2 is better."), {})])
    assert (row["winner"], row["forced"]) == (row["order"][1], True)
    assert ["response_format" in body for body in bodies] == [True, False]


@pytest.mark.parametrize(
    "reply",
    [(200, completion("I cannot say."), {}), (200, completion('{"verdict": 3}'), {}), (403, {}, {}), (200, [], {})],
)
def test_a_cut_judgment_that_gets_no_verdict_stays_cut(server, rows_file, reply):
    [row], _ = _state(server, rows_file, [reply])
    assert (row["text"], row["status"], row["forced"]) == ("There is a cup", "truncated", False)


def test_official_draws_are_sampled_as_the_benchmark_does(server, pairs):
    suite = SUITES["vl-rewardbench"]
    questions = list(suite.questions(pairs[:1], "official"))
    pictures = {pairs[0].shown: Image.new("RGB", (4, 4))}
    predictions = judge_questions(_judge(server.address), "j", suite, questions, pictures, seed=0, max_images=8)
    assert len(predictions) == len(server.requests) == 5
    bodies = [body for *_, body in server.requests]
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in bodies} == {(0.2, 0.2, 2048)}
    assert len({body["seed"] for body in bodies}) == 5
    assert all(body["messages"][0]["content"][0]["type"] == "text" for body in bodies)
