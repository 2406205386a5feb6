"""The streaming client against scripted servers."""

from __future__ import annotations

import json
import math
import socket
import threading

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.engines.openai_client import ConnectionLost, NoAnswer, OpenAIClient
from medical_assistant.errors import EngineError, UserError


def client_for(*chunks: bytes, status: int = 200, record: list | None = None) -> OpenAIClient:
    def answer(request: httpx.Request) -> httpx.Response:
        if record is not None:
            record.append(request)
        return httpx.Response(status, content=iter(chunks))

    return OpenAIClient("http://server", "key", transport=httpx.MockTransport(answer))


def event(**fields) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def delta(text, *logprobs, finish=None) -> bytes:
    content = [{"token": "?", "logprob": value} for value in logprobs]
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return event(choices=[{**choice, **({"logprobs": {"content": content}} if logprobs else {})}])


DONE = b"data: [DONE]\n\n"
END = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]) + DONE


def run(client: OpenAIClient):
    """Return (tokens, finish reason)."""
    tokens, stream = [], client.stream_chat({"messages": []})
    while True:
        try:
            tokens.append(next(stream))
        except StopIteration as stop:
            return tokens, stop.value


def test_tokens_and_finish_reason():
    record: list[httpx.Request] = []
    tokens, reason = run(client_for(delta("He", -0.5), delta("llo", -1.5), END, record=record))
    assert [(t.text, t.logprob) for t in tokens] == [("He", -0.5), ("llo", -1.5)]
    assert reason == "stop"
    assert json.loads(record[0].content) == {"messages": [], "stream": True}
    assert record[0].headers["authorization"] == "Bearer key"


def test_length_is_told_from_stop():
    assert run(client_for(delta("a", -1.0), delta(None, finish="length"), DONE))[1] == "length"


def test_several_tokens_in_one_event_keep_their_logprobs():
    tokens, _ = run(client_for(delta("🩺", -0.1, -0.2, -0.3), END))
    assert [t.text for t in tokens] == ["", "", "🩺"]
    assert [t.logprob for t in tokens] == [-0.1, -0.2, -0.3]


def test_server_without_logprobs_gives_nan():
    tokens, _ = run(client_for(delta("a"), END))
    assert tokens[0].text == "a" and math.isnan(tokens[0].logprob)


def test_prompt_progress_is_a_sign_of_life():
    progress = event(choices=[{"index": 0, "delta": {"content": None}}], prompt_progress={"processed": 256})
    tokens, _ = run(client_for(progress, delta("a", -1.0), END))
    assert [(t.text, t.logprob) for t in tokens] == [("", 0.0), ("a", -1.0)]


def test_comments_usage_and_carriage_returns_are_skipped():
    usage = event(choices=[], usage={"completion_tokens": 1})
    stream = (b": ping\n\n" + delta("a", -1.0) + usage + END).replace(b"\n", b"\r\n")
    assert [t.text for t in run(client_for(stream))[0]] == ["a"]


@given(st.lists(st.text(), max_size=8), st.integers(1, 40))
def test_any_text_in_any_chunks_arrives_whole(pieces, size):
    stream = b"".join(delta(piece, -1.0) for piece in [*pieces, "\u2028\u0085\x0b😀"]) + END
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    tokens, _ = run(client_for(*chunks))
    assert "".join(t.text for t in tokens) == "".join(pieces) + "\u2028\u0085\x0b😀"


@pytest.mark.parametrize("line", [b'data: {"error": {"message": "boom\\nsecond"}}\n', b'error: {"message": "boom"}\n'])
def test_error_in_the_stream(line):
    with pytest.raises(EngineError, match="boom") as caught:
        run(client_for(delta("a", -1.0), line))
    assert "\n" not in str(caught.value)


def test_too_long_prompt_is_the_users_to_fix():
    error = {"code": 400, "type": "exceed_context_size_error", "message": "request (5031 tokens) exceeds"}
    with pytest.raises(UserError, match="shorten") as caught:
        run(client_for(json.dumps({"error": error}).encode(), status=400))
    assert not isinstance(caught.value, EngineError)


def test_error_page_that_is_not_json():
    with pytest.raises(EngineError, match="502"):
        run(client_for(b"<html>bad gateway</html>", status=502))


def test_broken_event():
    with pytest.raises(EngineError, match="broken event"):
        run(client_for(b"data: {oops\n\n"))


@pytest.mark.parametrize(
    "choice",
    [
        "text",
        {"delta": "text"},
        {"delta": {"content": "a"}, "logprobs": {"content": [{"token": "a"}]}},
        {"delta": {"content": "a"}, "logprobs": {"content": [{"logprob": "none"}, 5]}},
        {"delta": {"content": "a"}, "logprobs": {"content": [{"logprob": -1.0, "top_logprobs": [{"logprob": 9e9}]}]}},
    ],
)
def test_a_server_that_speaks_something_else_is_an_engine_error(choice):
    with pytest.raises(EngineError, match="broken event"):
        run(client_for(delta("a", -1.0), event(choices=[choice]), END))
    whole = {"choices": [choice]}
    if isinstance(choice, dict) and "logprobs" in choice:
        with pytest.raises(EngineError, match="broken answer"):
            client_for(json.dumps(whole).encode()).chat({})


def test_stream_that_ends_in_the_middle():
    with pytest.raises(ConnectionLost, match="middle"):
        run(client_for(delta("a", -1.0)))


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = OpenAIClient(f"http://127.0.0.1:{port}", "key")
    with pytest.raises(ConnectionLost, match="check that it runs"):
        run(client)
    with pytest.raises(ConnectionLost):
        client.request("GET", "/props")


def test_silent_server_times_out():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = OpenAIClient(f"http://127.0.0.1:{server.getsockname()[1]}", "key", read_timeout_s=0.2)
        with pytest.raises(NoAnswer, match="does not answer"):
            run(client)
        with pytest.raises(NoAnswer):
            client.request("GET", "/health")


def test_closing_the_stream_drops_the_connection():
    dropped = threading.Event()

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            while not connection.recv(65536).endswith(b"}"):  # headers and body may come apart
                pass
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + delta("a", -1.0))
            connection.settimeout(5)
            if connection.recv(1) == b"":
                dropped.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        client = OpenAIClient(f"http://127.0.0.1:{server.getsockname()[1]}", "key")
        stream = client.stream_chat({"messages": []})
        assert next(stream).text == "a"
        assert not dropped.is_set()
        stream.close()
        thread.join(5)
    assert dropped.is_set()


@pytest.mark.parametrize("body", [b"[1]", b"<html>"])
def test_request_wants_a_json_object(body):
    with pytest.raises(EngineError, match="broken answer"):
        client_for(body).request("GET", "/props")


def test_proxy_of_the_environment_does_not_divert_a_local_server(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}')

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        client = OpenAIClient(f"http://127.0.0.1:{server.getsockname()[1]}", "key")
        assert client.request("GET", "/props") == {"a": 1}
        thread.join(5)


def test_whole_answer_with_the_entropy_of_its_alternatives():
    half = {"logprob": math.log(0.5)}
    entry = {"token": "a", "logprob": math.log(0.5), "top_logprobs": [half, {"logprob": math.log(0.25)}]}
    alone = {"token": "b", "logprob": -1.0}
    choice = {"message": {"content": "ab"}, "finish_reason": "length", "logprobs": {"content": [entry, alone]}}
    record: list[httpx.Request] = []
    answer = client_for(json.dumps({"choices": [choice]}).encode(), record=record).chat({"messages": []})
    assert (answer.text, answer.finish_reason) == ("ab", "length")
    assert answer.logprobs == (math.log(0.5), -1.0)
    # Halves, and two quarters of which one is all the rest: 1.5 bits.
    assert answer.entropies[0] == pytest.approx(1.5 * math.log(2)) and math.isnan(answer.entropies[1])
    assert json.loads(record[0].content)["stream"] is False


@pytest.mark.parametrize("reply", [{"choices": []}, {"choices": "none"}, {}])
def test_whole_answer_without_a_choice(reply):
    with pytest.raises(EngineError, match="broken answer"):
        client_for(json.dumps(reply).encode()).chat({"messages": []})


def test_the_end_of_turn_is_no_token_of_the_answer():
    content = [{"token": "a", "bytes": [97], "logprob": -1.0}, {"token": "", "bytes": [], "logprob": -3.0}]
    for reason, expected in (("stop", (-1.0,)), ("length", (-1.0, -3.0))):
        choice = {"message": {"content": "a"}, "finish_reason": reason, "logprobs": {"content": content}}
        assert client_for(json.dumps({"choices": [choice]}).encode()).chat({}).logprobs == expected
