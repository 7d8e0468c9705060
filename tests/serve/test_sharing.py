"""Many clients at one model: none lost, none mixed up, a place for who comes when one goes, and an orderly end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path
from typing import Any

import pytest

import mindmerger
from tests.serve.conftest import SECONDS, Served, command, environment, serving

LONG: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hola"}], "max_tokens": 10**9}


class Reading:
    """A stream that has begun."""

    def __init__(self, served: Served, **more: Any) -> None:
        self.connection = HTTPConnection("127.0.0.1", served.port, timeout=SECONDS)
        body = json.dumps({**LONG, "stream": True, **more})
        self.connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        self.response = self.connection.getresponse()

    def events(self) -> Iterator[Any]:
        for line in self.response:
            if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                yield json.loads(line[6:])

    def close(self) -> None:
        self.response.close()
        self.connection.close()


@pytest.fixture(scope="module")
def two(endless: Path) -> Iterator[Served]:
    """Two slots, one place to wait, answers that do not end by themselves."""
    with serving(endless, "--slots", "2", "--queue", "1", "--context", "20000") as found:
        yield found
        found.until(lambda state: state["busy"] == state["waiting"] == 0)
        assert found.stop() == 0
        assert "Traceback" not in found.said()


def test_sixteen_clients(random: Path) -> None:
    """Every question has its own answer, the one that the runtime gives it alone."""
    questions = [f"{i}: ¿Cuánto es {i} + 27?" for i in range(48)]
    with mindmerger.load(random, threads=1) as model:
        expected = {question: model.answer(question).text for question in questions}
    assert len(set(expected.values())) > 40  # that they are not mixed up must show
    with serving(random, "--slots", "8") as served, ThreadPoolExecutor(16) as pool:

        def ask(place: int) -> tuple[str, str]:
            question = questions[place]
            if place % 2:
                return question, served.chat(question).json["choices"][0]["message"]["content"]
            reading = Reading(served, messages=[{"role": "user", "content": question}], max_tokens=None)
            text = "".join(event["choices"][0]["delta"].get("content", "") for event in reading.events())
            reading.close()
            return question, text

        found = dict(pool.map(ask, range(len(questions))))
        assert set(found) == set(expected)
        # the rounding of another batch size may decide between two tokens of almost the same weight
        assert sum(found[question] == expected[question] for question in questions) >= len(questions) - 3
        assert served.health()["busy"] == 0
        assert served.stop() == 0


def test_a_client_that_goes_frees_its_slot(two: Served) -> None:
    for streams in (True, False):
        readers = []
        for _ in range(2):
            if streams:
                reading = Reading(two)
                next(reading.events())
                readers.append(reading)
            else:
                plain = socket.create_connection(("127.0.0.1", two.port))
                body = json.dumps(LONG).encode()
                plain.sendall(
                    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
                )
                readers.append(plain)  # type: ignore[arg-type]
        two.until(lambda state: state["busy"] == 2)
        for reader in readers:
            reader.close()
        two.until(lambda state: state["busy"] == 0)
    assert two.chat("hola", max_tokens=3).json["choices"][0]["message"]["content"] == "ab\n"


def test_a_full_queue(two: Served) -> None:
    readers = [Reading(two) for _ in range(2)]
    for reading in readers:
        assert "mindmerger" in next(reading.events())
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(two.chat, "hola", max_tokens=2)
        two.until(lambda state: (state["busy"], state["waiting"]) == (2, 1))
        for more in ({}, {"stream": True}):
            refused = two.chat("hola", **more)
            assert (refused.status, refused.json["error"]["code"]) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
        assert not waits.done()
        readers[0].close()
        assert waits.result(SECONDS).json["choices"][0]["message"]["content"] == "ab"
    readers[1].close()
    two.until(lambda state: state["busy"] == 0)


def test_who_came_first_is_served_first(endless: Path) -> None:
    with serving(endless, "--slots", "1", "--queue", "8", "--context", "20000", "--verbose") as served:
        reading = Reading(served)
        next(reading.events())
        came = []
        for place in range(8):
            waiting = HTTPConnection("127.0.0.1", served.port, timeout=SECONDS)
            # the longest first, so that a shorter one behind it could pass
            body = json.dumps({**LONG, "max_tokens": 100 - 10 * place})
            waiting.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            served.until(lambda state, count=place + 1: state["waiting"] == count)
            came.append(waiting)
        ports = [str(one.sock.getsockname()[1]) for one in came]
        reading.close()
        for place, waiting in enumerate(came):
            answer = json.load(waiting.getresponse())
            assert answer["usage"]["completion_tokens"] == 100 - 10 * place
            waiting.close()
        assert served.stop() == 0
        lines = [
            line for line in served.said().splitlines() if "/v1/chat/completions" in line
        ]  # one, as it is answered
        answered = [port for line in lines for port in ports if f":{port} " in line]
        assert answered == ports


def test_who_waits_may_go(two: Served) -> None:
    readers = [Reading(two) for _ in range(2)]
    waiting = socket.create_connection(("127.0.0.1", two.port))
    body = json.dumps(LONG).encode()
    waiting.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    two.until(lambda state: state["waiting"] == 1)
    waiting.close()
    two.until(lambda state: state["waiting"] == 0 and state["busy"] == 2)
    for reading in readers:
        reading.close()
    two.until(lambda state: state["busy"] == 0)


def test_short_answers_pass_long_ones(two: Served) -> None:
    """Two slots are answered at once: who asks little does not wait for who asks much."""
    reading = Reading(two)
    next(reading.events())
    for _ in range(5):
        assert two.chat("hola", max_tokens=4).json["choices"][0]["message"]["content"] == "ab\na"
    assert two.health()["busy"] == 1
    reading.close()
    two.until(lambda state: state["busy"] == 0)


def test_each_has_options_of_its_own(two: Served) -> None:
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(two.chat, "hola", max_tokens=400)
        cut = pool.submit(two.chat, "hola", max_tokens=10**9, mindmerger={"timeout": 0.05})
        stopped = two.chat("hola", max_tokens=10**9, stop="\nab")
        assert stopped.json["choices"][0]["message"]["content"] == "ab"
        assert slow.result(SECONDS).json["usage"]["completion_tokens"] == 400
        late = cut.result(SECONDS).json
    assert late["choices"][0]["finish_reason"] == "length" and late["mindmerger"]["finish_reason"] == "timeout"
    text = late["choices"][0]["message"]["content"]
    assert text and text.startswith("ab\nab"[: len(text)])


def test_a_limit_on_seconds(endless: Path) -> None:
    with serving(endless, "--timeout", "0.2", "--context", "20000") as served:
        assert served.chat("hola", max_tokens=10**9).json["mindmerger"]["finish_reason"] == "timeout"
        late = served.chat("hola", max_tokens=10**9, mindmerger={"timeout": 1000})
        assert late.json["mindmerger"]["finish_reason"] == "timeout"
        assert served.stop(signal.SIGINT) == 0


def test_graceful_stop(endless: Path) -> None:
    """What runs is finished, what waits and what comes is refused, and the code is 0."""
    with (
        serving(endless, "--slots", "1", "--queue", "3", "--context", "20000") as served,
        ThreadPoolExecutor(2) as pool,
    ):
        running = Reading(served, max_tokens=1500)
        events = running.events()
        next(events)
        waiting = pool.submit(served.chat, "hola")
        served.until(lambda state: state["waiting"] == 1)
        served.process.send_signal(signal.SIGTERM)
        refused = waiting.result(SECONDS)
        assert (refused.status, refused.json["error"]["code"]) == (503, "stopping")
        assert int(refused.headers["retry-after"]) >= 1
        last = list(events)[-1]
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["mindmerger"]["finish_reason"] == "length"
        running.close()
        assert served.process.wait(SECONDS) == 0
        assert "stopping" in served.said() and "Traceback" not in served.said()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stop_at_once(endless: Path, number: int, code: int) -> None:
    with serving(endless, "--context", "20000") as served:
        running = Reading(served)
        next(running.events())
        served.process.send_signal(number)
        time.sleep(0.3)
        assert served.process.poll() is None
        assert served.stop(number) == code
        assert "Traceback" not in served.said()


def test_killed_and_started_again(arithmetic: Path, endless: Path) -> None:
    with (
        serving(endless, "--slots", "2", "--context", "20000") as served,
        ThreadPoolExecutor(2) as pool,
    ):
        running = Reading(served)
        next(running.events())
        whole = [pool.submit(served.chat, "hola", max_tokens=10**9) for _ in range(2)]  # one has a slot, one waits
        served.until(lambda state: (state["busy"], state["waiting"]) == (2, 1))
        port = served.port
        served.process.kill()
        served.process.wait()
        for one in whole:
            assert isinstance(one.exception(SECONDS), OSError)
        with pytest.raises((OSError, IncompleteRead)):  # the stream breaks off
            while running.response.read1():
                pass
            raise OSError("without an end")  # how http.client takes the end of a connection between two chunks
        with serving(arithmetic, "--port", str(port)) as again:
            assert again.port == port and again.chat("hola").status == 200


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--bundle", "nothing-of-this-name"], 4, "there is no bundle"),
        (["--host", "0.0.0.0"], 3, "API key"),
        (["--host", "no.such.host.invalid", "--api-key-file", "KEY"], 3, "no address"),
        (["--host", "192.0.2.1", "--api-key-file", "KEY"], 3, "192.0.2.1"),
        (["--api-key-file", "missing"], 3, "cannot be read"),
        (["--api-key-file", "SHORT"], 3, "16 or more"),
        (["--allow-origin", "friend"], 3, "no origin"),
        (["--port", "70000"], 2, "70000"),
        (["--slots", "0"], 2, "slots"),
        (["--slots", "100000"], 3, "slots"),
        (["--quiet", "--verbose"], 2, "exclude"),
        (["--context", "100000000"], 3, "context"),
        (["--device", "cuda", "--gpu-layers", "-2"], 3, "gpu_layers"),
    ],
)
def test_wrong_starts(arithmetic: Path, tmp_path: Path, arguments: list[str], code: int, part: str) -> None:
    (tmp_path / "KEY").write_text("k" * 32)
    (tmp_path / "SHORT").write_text("abc")
    given = [str(tmp_path / one) if one in ("KEY", "SHORT") else one for one in arguments]
    found = subprocess.run(
        command("--bundle", str(arithmetic), "--port", "0", *given),
        env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == code, found.stderr
    assert part in found.stderr and "Traceback" not in found.stderr and found.stdout == ""


def test_a_port_in_use(served: Served, arithmetic: Path) -> None:
    found = subprocess.run(
        command("--bundle", str(arithmetic), "--port", str(served.port)),
        env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert found.returncode == 3 and f"port {served.port} is in use" in found.stderr and "Traceback" not in found.stderr


def test_help_loads_nothing(arithmetic: Path) -> None:
    code = (
        "import sys\nfrom mindmerger.cli.serve import command\n"
        "command.main(['--help'], standalone_mode=False)\n"
        "heavy = {'starlette', 'uvicorn', 'pydantic', 'numpy', 'onnxruntime', 'llama_cpp', 'prometheus_client'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    found = subprocess.run([*command()[:2], code], env=environment(), capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "--api-key-file" in found.stdout


def test_threads_end_with_the_service(two: Served) -> None:
    """Many short connections leave nothing behind."""
    before = len(list(Path(f"/proc/{two.process.pid}/fd").iterdir())) if Path("/proc").is_dir() else 0
    threads = [threading.Thread(target=two.health) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if before:
        end = time.monotonic() + SECONDS
        while len(list(Path(f"/proc/{two.process.pid}/fd").iterdir())) > before + 5:
            assert time.monotonic() < end
            time.sleep(0.1)
