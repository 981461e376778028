"""A text judge behind HTTP: a real server on loopback that answers well, is busy, breaks, or is slow."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from carevl.errors import UserError
from carevl.models import chat_client
from carevl.models.experts import EXPERT_KINDS
from carevl.models.experts.endpoint import EndpointJudge, _log_odds
from carevl.models.experts.questions import least_squares
from carevl.models.row_errors import SomeRowsError
from carevl.settings.models import Endpoint, Expert

QUALITY = {"a red circle": 2.0, "a blue circle": 0.5, "nothing": -1.0}
BIAS = 0.7
"""Log-odds by which the served judge favours what it sees first."""


class Server:
    """Judges by QUALITY and BIAS. `script` lists what to do first: a status code, or seconds to be silent."""

    def __init__(self, letters=" AB"):
        self.script, self.asked, self.headers, self.letters = [], [], [], letters
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body)
                server.headers.append(dict(self.headers))
                step = server.script.pop(0) if server.script else 200
                if isinstance(step, float):
                    time.sleep(step)
                    step = 500
                self.send_response(step)
                self.send_header("Retry-After", "0")
                self.end_headers()
                if step == 200:
                    self.wfile.write(json.dumps(server.answer(body)).encode())

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, body):
        text = body["messages"][0]["content"]
        first, second = (text.split(f"[Response {letter}]\n")[1].split("\n\n")[0] for letter in "AB")
        odds = QUALITY[first] - QUALITY[second] + BIAS
        logs = [-math.log1p(math.exp(-odds)), -math.log1p(math.exp(odds))]
        tokens = zip(["A", " B"] if self.letters == " AB" else self.letters, logs, strict=False)
        return {
            "choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": t, "logprob": v} for t, v in tokens]}]}}]
        }


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(chat_client, "_WAIT", 0.01)
    served = Server()
    yield served
    served.http.shutdown()
    served.http.server_close()


def _judge(server, **changes):
    return EndpointJudge("judge-1", Endpoint(url=server.url, **changes))


ROW = ("What is there?", list(QUALITY))


def test_scores_are_the_judge_s_log_odds_without_its_position_bias(server):
    [scores] = _judge(server).score_rows([ROW])
    assert [a - b for a, b in itertools.pairwise(scores)] == pytest.approx([1.5, 1.5])
    assert sum(scores) == pytest.approx(0)
    assert len(server.asked) == 6
    assert {(body["model"], body["max_tokens"], body["temperature"]) for body in server.asked} == {("judge-1", 1, 0)}


def test_rows_with_the_same_question_are_not_mixed_up(server):
    rows = [("What is there?", ["a red circle", "nothing"]), ("What is there?", ["a blue circle", "nothing"])] * 4
    results = _judge(server, concurrency=4).score_rows(rows)
    assert [scores[0] - scores[1] for scores in results] == pytest.approx([3.0, 1.5] * 4)


@pytest.mark.parametrize("script", [[429, 503, 429], [500, 1.5], [200, 429]])
def test_a_busy_or_broken_endpoint_is_asked_again(server, script):
    server.script = list(script)
    [[first, second]] = _judge(server, timeout=1.0).score_rows([("What is there?", ["a red circle", "nothing"])])
    assert first - second == pytest.approx(3.0)
    assert len(server.asked) == 2 + sum(step != 200 for step in script)


def test_a_row_has_a_budget_of_tries_and_the_others_go_on(server):
    server.script = [500] * 3
    rows = [("What is there?", ["a red circle", "nothing"]), ("What is there?", ["a blue circle", "nothing"])]
    with pytest.raises(SomeRowsError) as caught:
        _judge(server, retries=2, concurrency=1).score_rows(rows)
    assert caught.value.failures[0].message == "status 500: ; given up after 2 more tries"
    assert caught.value.results == [None, pytest.approx([0.75, -0.75])]


def test_an_endpoint_that_is_not_there_is_said_once(server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UserError, match=r"cannot be reached: ConnectError: .*; given up after 1 more tries"):
        _judge(server, retries=1).score_rows([ROW] * 3)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_once_the_endpoint_has_answered_a_refused_row_fails_alone(server, status):
    judge = _judge(server, concurrency=1)
    judge.score_rows([ROW])
    server.script = [status]
    with pytest.raises(SomeRowsError) as caught:
        judge.score_rows([ROW, ROW])
    assert list(caught.value.failures) == [0]
    assert caught.value.results[1] == pytest.approx([1.5, 0.0, -1.5])


def test_fields_of_requests_are_settings(server):
    fields = {"max_tokens_field": "max_completion_tokens", "omit": ["temperature"], "extra_body": {"top_logprobs": 5}}
    _judge(server, **fields).score_rows([ROW])
    body = server.asked[0]
    assert (body["max_completion_tokens"], body["top_logprobs"], body["logprobs"]) == (1, 5, True)
    assert not {"max_tokens", "temperature"} & set(body)


def test_settings_that_change_scores_are_in_the_fingerprint():
    def fingerprint(**fields):
        endpoint = Endpoint(url="https://judges.example/v1", **fields)
        expert = Expert(name="remote", kind="endpoint", path="judge-1", endpoint=endpoint)
        return EXPERT_KINDS["endpoint"].fingerprint(expert)

    assert fingerprint(timeout=5, retries=1, max_tokens_field="max_completion_tokens") == fingerprint()
    assert fingerprint() == "https://judges.example/v1 judge-1"
    assert len({fingerprint(), fingerprint(omit=["top_p"]), fingerprint(extra_body={"top_k": 1})}) == 3


def test_a_row_that_the_endpoint_does_not_take_is_not_asked_again(server):
    server.script = [400]
    with pytest.raises(SomeRowsError, match="status 400"):
        _judge(server).score_rows([ROW])
    assert len(server.asked) == 1


def test_an_answer_without_a_letter_is_no_verdict(server):
    server.letters = ["Both", "Neither"]
    with pytest.raises(SomeRowsError) as caught:
        _judge(server).score_rows([ROW])
    assert caught.value.failures[0].kind == "no verdict"


def test_an_answer_without_log_probabilities_is_a_row_error(server):
    server.answer = lambda body: {"choices": [{"message": {"content": "A"}}]}
    with pytest.raises(SomeRowsError, match="no log-probabilities"):
        _judge(server).score_rows([ROW])


def test_a_letter_that_is_missing_counts_as_the_least_likely_one_named(server):
    server.answer = lambda body: {
        "choices": [
            {
                "logprobs": {
                    "content": [{"top_logprobs": [{"token": "A", "logprob": -0.1}, {"token": "x", "logprob": -5.0}]}]
                }
            }
        ]
    }
    [[first, second]] = _judge(server).score_rows([("What is there?", ["a red circle", "nothing"])])
    assert first == second == 0.0


def test_a_letter_that_the_service_calls_impossible_has_a_finite_score(server):
    logs = [{"token": "A", "logprob": 0.0}, {"token": "B", "logprob": -9999.0}]
    server.answer = lambda body: {"choices": [{"logprobs": {"content": [{"top_logprobs": logs}]}}]}
    [[first, second]] = _judge(server).score_rows([("What is there?", ["a red circle", "nothing"])])
    assert first == second == 0.0
    assert _log_odds(server.answer({})) == pytest.approx(100.0)
    logs[1]["logprob"] = -math.inf
    assert _log_odds(server.answer({})) == pytest.approx(100.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_log_probability_that_is_no_number_is_an_error(server, value):
    logs = [{"token": "A", "logprob": 0.0}, {"token": "x", "logprob": value}]
    server.answer = lambda body: {"choices": [{"logprobs": {"content": [{"top_logprobs": logs}]}}]}
    with pytest.raises(SomeRowsError, match=f"the service gives {value} for a log-probability") as caught:
        _judge(server).score_rows([("What is there?", ["a red circle", "nothing"])])
    assert caught.value.failures[0].kind == "not a number"


def test_the_key_comes_from_the_environment_and_stays_out_of_errors(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-words")
    server.script = [401]
    with pytest.raises(UserError, match=r"status 401.*the model judge-1 and the key") as caught:
        _judge(server, api_key_env="JUDGE_KEY").score_rows([ROW])
    assert server.headers[0]["Authorization"] == "Bearer secret-words"
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="the environment has no JUDGE_KEY"):
        _judge(server, api_key_env="JUDGE_KEY")


def test_a_key_never_travels_unencrypted(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-words")
    with pytest.raises(UserError, match="is not encrypted"):
        EndpointJudge("judge-1", Endpoint(url="http://judges.example/v1", api_key_env="JUDGE_KEY"))
    EndpointJudge("judge-1", Endpoint(url="https://judges.example/v1", api_key_env="JUDGE_KEY"))


def test_an_endpoint_is_an_expert_like_any_other(server):
    expert = Expert(name="remote", kind="endpoint", path="judge-1", endpoint=Endpoint(url=server.url, retries=0))
    server.script = [500]
    results = EXPERT_KINDS[expert.kind].load(expert)([ROW])
    assert results[0].kind == "endpoint"
    [scores] = EXPERT_KINDS[expert.kind].load(expert)([ROW])
    assert scores == pytest.approx([1.5, 0.0, -1.5])


def test_least_squares_recovers_scores_and_settles_contradictions():
    truth = [1.0, -2.0, 0.5, 0.5]
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    assert least_squares({(i, j): truth[i] - truth[j] for i, j in pairs}, 4) == pytest.approx(truth)
    assert least_squares({(0, 1): 1.0, (1, 2): 1.0, (0, 2): -1.0}, 3) == pytest.approx([0.0, 0.0, 0.0])
