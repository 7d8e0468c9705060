"""mm-serve as its own process on a free port, over tiny bundles."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60


@dataclass
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)


@dataclass
class Served:
    """A service that answers at `url`."""

    process: subprocess.Popen[bytes]
    url: str
    errors: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
    ) -> Answer:
        """One request over a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        sent = json.dumps(body).encode() if data is None and body is not None else data
        given = {"Content-Type": "application/json"} if sent is not None else {}
        try:
            connection.request(method or ("GET" if sent is None else "POST"), path, sent, {**given, **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def chat(self, question: str, **more: Any) -> Answer:
        message = {"role": "user", "content": question}
        return self.ask("/v1/chat/completions", {"model": "tiny", "messages": [message], **more})

    def health(self) -> Any:
        return self.ask("/health").json

    def until(self, holds: Callable[[Any], bool]) -> Any:
        """Wait until /health says so."""
        end = time.monotonic() + SECONDS
        while not holds(found := self.health()):
            assert time.monotonic() < end, found
            time.sleep(0.02)
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def said(self) -> str:
        return self.errors.read_text(encoding="utf-8")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from mindmerger.cli.serve import main\nmain()", *arguments]


def environment(**more: str) -> dict[str, str]:
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "runtime"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    found.pop("MINDMERGER_API_KEY", None)
    found.pop("MINDMERGER_BUNDLE", None)
    return {**found, "PYTHONIOENCODING": "utf-8", **more}


@contextlib.contextmanager
def serving(bundle: Path, *arguments: str, host: str = "127.0.0.1", **variables: str) -> Iterator[Served]:
    """Start the service and stop it."""
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "stderr"
        with errors.open("wb") as file:
            process = subprocess.Popen(
                command("--bundle", str(bundle), "--port", "0", "--host", host, "--threads", "1", *arguments),
                stdout=subprocess.PIPE,
                stderr=file,
                stdin=subprocess.DEVNULL,
                env=environment(XDG_CACHE_HOME=folder, TMPDIR=folder, **variables),
            )
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode().strip()
            assert line.startswith("http://"), errors.read_text()
            yield Served(process, line, errors)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="session")
def arithmetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says "<<48/2=24>>#### 7" to everything."""
    return tiny.bundle(tmp_path_factory.mktemp("serve") / "arithmetic", llm="arithmetic")


@pytest.fixture(scope="session")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says something else to each question."""
    return tiny.bundle(tmp_path_factory.mktemp("serve") / "random")


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says "ab\\nab\\n…" until something else ends it: what an answer of minutes does, without the minutes."""
    folder = tmp_path_factory.mktemp("serve") / "endless"
    folder.mkdir()
    files = [
        tiny.file_info("merger", tiny.merger_graph(folder / "merger.onnx")),
        tiny.file_info("tokenizer", tiny.tokenizer(folder / "tokenizer.json")),
        tiny.file_info("llm", tiny.scripted_llm(folder / "llm.gguf", {"\n": "a", "a": "b", "b": "\n"})),
    ]
    manifest = tiny.manifest(files, tiny.Recipe(max_new_tokens=1_000_000))
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def served(arithmetic: Path) -> Iterator[Served]:
    """One service for all tests that leave it as it was."""
    with serving(arithmetic) as found:
        yield found
        assert found.health()["busy"] == 0
        assert found.stop() == 0
        assert "Traceback" not in found.said()


@pytest.fixture(scope="session")
def talking(random: Path) -> Iterator[Served]:
    """The same over random weights."""
    with serving(random) as found:
        yield found
        assert found.stop() == 0
        assert "Traceback" not in found.said()
