"""What is not answered: wrong bodies, foreign pages, hostile connections. Always in OpenAI's form, and still serving."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Served, serving

GOOD: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hola"}]}
KEY = "a-key-of-sixteen-or-more"


@pytest.fixture(scope="module", autouse=True)
def still_serving(served: Served) -> Iterator[None]:
    yield
    assert served.chat("hola").status == 200
    assert served.health()["busy"] == 0


@pytest.mark.parametrize(
    ("change", "param", "part"),
    [
        ({"model": None}, "model", "string"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hola"}, "messages", "array"),
        ({"messages": [{"role": "user"}]}, None, "empty"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "system"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, None, "last message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, "text alone"),
        ({"messages": [{"role": "user", "content": "  "}]}, None, "empty"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, None, "NUL"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, None, "shorten"),
        ({"n": 2}, "n", "one answer"),
        ({"tools": [{}]}, "tools", "no tools"),
        ({"logprobs": True}, "logprobs", "not given"),
        ({"response_format": {"type": "json_object"}}, "response_format", "text"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "repeat_penalty"),
        ({"temprature": 1}, "temprature", "spelling"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"temperature": True}, "temperature", "number"),
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None, "contradict"),
        ({"stop": [""]}, "stop.0", "at least 1"),
        ({"stop": ""}, "stop", "at least 1"),
        ({"a[b](c)": 1}, "a[b](c)", "spelling"),
        ({"stop": ["x"] * 17}, "stop", "16"),
        ({"top_p": 0.5}, None, "temperature"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"mindmerger": {"language": "sw"}}, None, "no gate"),
        ({"mindmerger": {"encoder_weight": 2.5}}, "mindmerger.encoder_weight", "2"),
        ({"mindmerger": {"soft_prompt": False, "encoder_weight": 1}}, None, "contradict"),
        ({"mindmerger": {"soft_prompt": False, "question_in_prompt": False}}, None, "no question left"),
        ({"mindmerger": {"wieght": 1}}, "mindmerger.wieght", "spelling"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("streams", [False, True])
def test_wrong_parameters(served: Served, change: dict[str, Any], param: str | None, part: str, streams: bool) -> None:
    found = served.ask("/v1/chat/completions", {**GOOD, **change, **({"stream": True} if streams else {})})
    if streams and "stream_options" in change:
        assert found.status == 200
        return
    assert found.status == 400, found.data
    error = found.json["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param and part in error["message"], error


def test_an_unknown_model(served: Served) -> None:
    found = served.ask("/v1/chat/completions", {**GOOD, "model": "gpt-9"})
    assert (found.status, found.json["error"]["code"]) == (404, "model_not_found")
    assert "'tiny'" in found.json["error"]["message"]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "\xc3\x28"}', b'{"model": "\\ud800"}', b"[" * 100_000,
     b'{"n": ' + b"9" * 10_000 + b"}", b'{"temperature": NaN}', b"\x00", b'{"model": "tiny"} {}'],
)  # fmt: skip
def test_a_body_that_is_none(served: Served, data: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/explain"):
        found = served.ask(path, data=data)
        assert found.status == 400 and found.json["error"]["message"], found.data


def test_size_and_kind_of_a_body(served: Served) -> None:
    big = json.dumps({**GOOD, "user": "x" * 10_000_000}).encode()
    assert len(big) > 10_000_000
    found = served.ask("/v1/chat/completions", data=big)
    assert (found.status, found.json["error"]["code"]) == (413, "body_too_large")
    found = served.ask("/v1/chat/completions", data=json.dumps(GOOD).encode(), headers={"Content-Type": "text/plain"})
    assert found.status == 415
    assert served.ask("/v1/chat/completions").status == 405
    assert served.ask("/v1/chat/completions").headers["allow"] == "POST"
    assert served.ask("/nowhere").json["error"]["code"] == "not_found"


def raw(served: Served, data: bytes, *, seconds: float = 30) -> bytes:
    """What comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=seconds) as connection:
        connection.sendall(data)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


def test_a_body_of_unknown_length(served: Served) -> None:
    """Chunks that never end are refused as soon as they are too many."""
    head = b"POST /v1/explain HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(head)
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(20):
            connection.sendall(chunk)
        assert connection.recv(12) == b"HTTP/1.1 413"


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"POST /v1/explain HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
    ],
)
def test_what_is_no_request(served: Served, data: bytes) -> None:
    status = raw(served, data).split(b" ")[1]
    assert status in (b"400", b"403")


def test_a_head_without_end(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection, pytest.raises(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        for _ in range(1000):
            connection.sendall(b"x" * 10_000)
            time.sleep(0.001)


def test_slow_heads_are_cut_off(served: Served) -> None:
    """Heads that dribble in hold a connection for ten seconds, not for ever; nobody else notices."""
    slow = [socket.create_connection(("127.0.0.1", served.port), timeout=60) for _ in range(20)]
    began = time.monotonic()
    for connection in slow[:10]:
        connection.sendall(b"POST /v1/explain HTTP/1.1\r\nHost: localhost\r\n")
    assert served.chat("hola").status == 200
    while time.monotonic() - began < 8:
        for connection in slow[:5]:
            connection.sendall(b"X-A: b\r\n")
        time.sleep(1)
    for connection in slow:
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        connection.close()


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Host": "localhost:{port}"}, True),
        ({"Host": "LOCALHOST"}, True),
        ({"Host": "127.0.0.1"}, True),
        ({"Host": "[::1]:{port}"}, True),
        ({"Host": "evil.example"}, False),
        ({"Host": "evil.example:{port}"}, False),
        ({"Host": "127.0.0.1.evil.example"}, False),
        ({"Host": "localhost@evil.example"}, False),
        ({"Host": ""}, False),
        ({"Origin": "http://127.0.0.1:{port}"}, True),
        ({"Origin": "http://localhost:{port}"}, False),  # another origin than the Host's
        ({"Origin": "http://localhost:{port}", "Host": "localhost:{port}"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, True),
    ],
)
def test_pages_from_elsewhere(served: Served, headers: dict[str, str], allowed: bool) -> None:
    given = {name: value.format(port=served.port) for name, value in headers.items()}
    for path in ("/v1/models", "/health", "/", "/metrics"):
        found = served.ask(path, headers=given)
        assert found.status == (200 if allowed else 403), (path, found.data)
        assert "access-control-allow-origin" not in found.headers


def test_a_page_that_is_let_in(arithmetic: Path) -> None:
    with serving(arithmetic, "--allow-origin", "https://Friend.example/", "--allow-host", "box.lan") as found:
        origin = {"Origin": "https://friend.example"}
        preflight = found.ask(
            "/v1/chat/completions",
            method="OPTIONS",
            headers={
                **origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        )
        assert preflight.status == 200
        assert preflight.headers["access-control-allow-origin"] == "https://friend.example"
        answer = found.ask("/v1/chat/completions", GOOD, headers=origin)
        assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "https://friend.example"
        assert found.ask("/health", headers={"Origin": "https://foe.example"}).status == 403
        assert found.ask("/health", headers={"Host": "box.lan:80"}).status == 200


def test_an_api_key(arithmetic: Path, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    with serving(arithmetic, "--api-key-file", str(file), host="0.0.0.0") as found:
        assert found.url.startswith("http://127.0.0.1:")
        for wrong in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": KEY},
                      {"Authorization": "Bearer é"}):  # fmt: skip
            refused = found.ask("/v1/models", headers=wrong)
            assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert found.ask("/metrics").status == found.ask("/openapi.json").status == 401
        assert found.ask("/health").status == found.ask("/").status == 200
        right = {"Authorization": f"Bearer {KEY}"}
        assert found.ask("/v1/chat/completions", GOOD, headers=right).status == 200
        # a name that leads here is not ours, an address is
        assert found.ask("/health", headers={"Host": "evil.example"}).status == 403
        assert found.ask("/health", headers={"Host": "192.0.2.7:8017"}).status == 200
        assert KEY not in found.said()


@pytest.mark.parametrize(
    "path",
    ["/../cli/serve.py", "/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page//etc/passwd", "/page/",
     "/page/page.css/", "/page/page.css%00", "/page/..\\app.py", "//etc/passwd", "/page/PAGE.CSS"],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(served: Served, path: str) -> None:
    found = served.ask(path)
    assert found.status == 404 and found.json["error"]["code"] == "not_found"


def test_headers_of_the_page(served: Served) -> None:
    found = served.ask("/")
    assert found.status == 200 and found.headers["content-type"] == "text/html; charset=utf-8"
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert found.headers["x-content-type-options"] == "nosniff" and "server" not in found.headers
    again = served.ask("/", headers={"If-None-Match": found.headers["etag"]})
    assert again.status == 304 and again.data == b""
    assert served.ask("/", method="HEAD").data == b""
