"""The endpoint engine against a server on loopback that speaks vLLM's dialect, and misbehaves."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrain.engines import SamplingRequest
from posttrain.engines.openai import OpenAIEngine, retry_after_seconds
from posttrain.errors import SetupError
from posttrain.models import load_tokenizer
from posttrain.recipe.models import EngineSpec


def logprob(position: int, token: int) -> float:
    return -(position * 10 + token) / 100


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """What vLLM answers; token t of choice c is 10 * (the prompt's last token) + c."""
    prompt = body["prompt"]
    choices: list[dict[str, Any]] = []
    for index in reversed(range(body.get("n", 1))):  # the order in `choices` means nothing
        choice: dict[str, Any] = {"index": index, "text": "x", "finish_reason": "stop"}
        choice["logprobs"] = {"token_logprobs": [-0.5, -0.25]}
        if body.get("return_token_ids"):
            choice["token_ids"] = [10 * prompt[-1] + index, body.get("seed", 0)]
        if "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [
                None if i == 0 else {str(t): {"logprob": logprob(i, t), "rank": 1}}
                for i, t in enumerate(prompt)
            ]
        choices.append(choice)
    return {"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": choices}


class Server(ThreadingHTTPServer):
    """Counts what it sees; `trouble` may answer a request instead of it."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.trouble: Callable[[Handler, int], bool] = lambda handler, number: False
        self.change: Callable[[dict[str, Any]], Any] = lambda reply: reply
        self.delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/completions"
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(body)
            self.server.keys.append(self.headers["Authorization"])
            self.server.times.append(time.monotonic())
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        time.sleep(self.server.delay)
        with self.server.lock:
            self.server.in_flight -= 1
        if not self.server.trouble(self, number):
            self.reply(200, json.dumps(self.server.change(answer(body))))

    def reply(self, status: int, text: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def engine(server: Server) -> Iterator[OpenAIEngine]:
    spec = EngineSpec(kind="openai", base_url=server.url, model="m", concurrency=4)
    one = OpenAIEngine(spec, max_attempts=4, first_wait_seconds=0.005, timeout_seconds=5)
    yield one
    one.close()


def test_score_returns_the_continuations_logprobs(server, engine):
    scores = engine.score([[5, 6], [7]], [[8, 9], [1]])
    assert scores == [[logprob(2, 8), logprob(3, 9)], [logprob(1, 1)]]
    assert {tuple(r["prompt"]) for r in server.requests} == {(5, 6, 8, 9), (7, 1)}
    assert all(r["max_tokens"] == 1 and r["model"] == "m" for r in server.requests)
    (alone,) = engine.score([[]], [[3]])
    assert math.isnan(alone[0])


def test_generate_returns_completions_in_order(server, engine):
    request = SamplingRequest(num_generations=2, max_tokens=7, temperature=0.5, top_p=0.9, seed=11)
    completions = engine.generate([[1], [2], [3]], request)
    assert [[c.token_ids for c in row] for row in completions] == [
        [[10, 11], [11, 11]],
        [[20, 13], [21, 13]],
        [[30, 15], [31, 15]],
    ]
    assert completions[0][0].logprobs == [-0.5, -0.25]
    assert completions[0][0].finish_reason == "stop"
    sent = server.requests[0]
    assert (sent["n"], sent["max_tokens"], sent["temperature"], sent["top_p"]) == (2, 7, 0.5, 0.9)


def test_no_prompts_send_no_request(server, engine):
    assert engine.score([], []) == []
    assert server.requests == []


def test_requests_in_flight_are_limited_by_concurrency(server, engine):
    server.delay = 0.02
    engine.score([[1]] * 20, [[2]] * 20)
    assert 2 <= server.most_in_flight <= 4


def test_the_api_key_is_read_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("MY_JUDGE_KEY", "secret")
    spec = EngineSpec(kind="openai", base_url=server.url, model="m", api_key_env="MY_JUDGE_KEY")
    one = OpenAIEngine(spec)
    one.score([[1]], [[2]])
    one.close()
    assert server.keys == ["Bearer secret"]


def reset(handler: Handler, number: int) -> bool:
    if number < 2:
        handler.connection.shutdown(2)
        handler.connection.close()
        return True
    return False


def status(code: int, times: int) -> Callable[[Handler, int], bool]:
    def trouble(handler: Handler, number: int) -> bool:
        if number < times:
            handler.reply(code, '{"error": {"message": "no such luck"}}')
        return number < times

    return trouble


def broken_json(handler: Handler, number: int) -> bool:
    if number < 2:
        handler.reply(200, '{"choices": [')
    return number < 2


def empty_reply(handler: Handler, number: int) -> bool:
    if number < 2:
        handler.reply(200, '{"choices": []}')
    return number < 2


@pytest.mark.parametrize(
    "trouble", [status(500, 3), status(503, 2), status(429, 2), reset, broken_json, empty_reply]
)
def test_temporary_errors_are_retried(server, engine, trouble):
    server.trouble = trouble
    assert engine.score([[5]], [[8]]) == [[logprob(1, 8)]]
    assert len(server.requests) in (3, 4)


def test_lasting_errors_name_the_endpoint_after_max_attempts(server, engine):
    server.trouble = status(500, 10**6)
    with pytest.raises(SetupError, match=r"returned status 500: .*no such luck") as caught:
        engine.score([[5]], [[8]])
    assert server.url in caught.value.message
    assert "model m" in caught.value.message
    assert len(server.requests) == 4
    server.trouble = lambda handler, number: False
    assert engine.score([[5]], [[8]]) == [[logprob(1, 8)]]  # the engine outlives its failures


def test_lasting_broken_replies_are_a_setup_error(server, engine):
    server.trouble = lambda handler, number: handler.reply(200, "{") or True
    with pytest.raises(SetupError, match="broken reply"):
        engine.score([[5]], [[8]])


@pytest.mark.parametrize(
    ("code", "hint"), [(401, "OPENAI_API_KEY"), (404, "base_url"), (400, "max_model_len")]
)
def test_refused_requests_are_not_retried(server, engine, code, hint):
    server.trouble = status(code, 10**6)
    with pytest.raises(SetupError) as caught:
        engine.score([[5]], [[8]])
    assert hint in caught.value.hint
    assert len(server.requests) == 1


def test_one_failure_cancels_the_other_requests(server, engine):
    server.trouble = status(401, 10**6)
    with pytest.raises(SetupError):
        engine.score([[5]] * 200, [[8]] * 200)
    assert len(server.requests) < 50


def test_an_unreachable_server_is_named():
    spec = EngineSpec(kind="openai", base_url="http://127.0.0.1:9/v1", model="m")
    one = OpenAIEngine(spec, max_attempts=2, first_wait_seconds=0.001)
    with pytest.raises(SetupError, match=r"127\.0\.0\.1:9/v1 \(model m\) cannot be reached"):
        one.score([[1]], [[2]])
    one.close()


def test_retry_after_sets_the_wait(server, engine):
    def trouble(handler: Handler, number: int) -> bool:
        if number == 0:
            handler.reply(429, "{}", Retry_After="0.4")
        return number == 0

    server.trouble = trouble
    engine.score([[5]], [[8]])
    assert server.times[1] - server.times[0] >= 0.4


def test_retry_after_seconds_parses_numbers_and_dates():
    assert retry_after_seconds(None, 0.0) is None
    assert retry_after_seconds("7", 0.0) == 7.0
    assert retry_after_seconds("-7", 0.0) == 0.0
    assert retry_after_seconds("Thu, 01 Jan 1970 00:01:40 GMT", 90.0) == 10.0
    assert retry_after_seconds("soon", 0.0) is None


def without(field: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(reply: dict[str, Any]) -> dict[str, Any]:
        for choice in reply["choices"]:
            choice.pop(field, None)
        return reply

    return change


def other_tokens(reply: dict[str, Any]) -> dict[str, Any]:
    for choice in reply["choices"]:
        choice["prompt_logprobs"] = [None, {"999": {"logprob": -1.0}}]
    return reply


def test_a_server_without_vllms_extensions_is_a_setup_error(server, engine):
    request = SamplingRequest(num_generations=1, max_tokens=1)
    for change in (without("token_ids"), without("logprobs")):
        server.change = change
        with pytest.raises(SetupError, match="no token ids") as caught:
            engine.generate([[1]], request)
        assert "vllm serve" in caught.value.hint
    server.change = without("prompt_logprobs")
    with pytest.raises(SetupError, match="of the prompt"):
        engine.score([[1]], [[2]])
    server.change = other_tokens
    with pytest.raises(SetupError, match="other tokens"):
        engine.score([[1]], [[2]])


def test_too_few_completions_are_a_setup_error(server, engine):
    server.change = lambda reply: {**reply, "choices": reply["choices"][:1]}
    with pytest.raises(SetupError, match="1 of 2"):
        engine.generate([[1]], SamplingRequest(num_generations=2, max_tokens=1))


def test_sync_weights_raises(engine):
    with pytest.raises(SetupError, match="judging only"):
        engine.sync_weights([], 1)


def test_check_tokenizer_detects_another_tokenizer(server: Server, tiny_llama4: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama4)

    def reading(shift: int) -> Callable[[dict[str, Any]], Any]:
        def change(reply: dict[str, Any]) -> dict[str, Any]:
            for row in reply["choices"][0]["prompt_logprobs"][1:]:
                for token, entry in row.items():
                    entry["decoded_token"] = tokenizer.decode([int(token) + shift])
            return reply

        return change

    spec = EngineSpec(kind="openai", base_url=server.url, model="m")
    engine = OpenAIEngine(spec, max_attempts=1)
    server.change = reading(0)
    engine.check_tokenizer(tokenizer)
    server.change = reading(1)
    with pytest.raises(SetupError, match="has another tokenizer"):
        engine.check_tokenizer(tokenizer)
    engine.close()
