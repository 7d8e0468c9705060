"""Start mm-serve, load the page as a browser does, use the API, stop it; prints what came back as JSON.

A program of its own, so that it can run inside the network namespace that the service is in.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urljoin, urlsplit

SECONDS = 240


def get(port: int, path: str, body: Any = None) -> tuple[int, str, str]:
    """Status, type and text of one request."""
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    sent = None if body is None else json.dumps(body).encode()
    connection.request(
        "GET" if sent is None else "POST", path, sent, {"Content-Type": "application/json"} if sent else {}
    )
    answer = connection.getresponse()
    found = answer.status, answer.headers.get_content_type(), answer.read().decode("utf-8")
    connection.close()
    return found


def main(command: list[str], question: str) -> None:
    """Ask the service that `command` starts."""
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), url
        port = urlsplit(url).port
        assert port is not None
        page: dict[str, int] = {}
        foreign: list[str] = []
        waiting = ["/"]
        while waiting:
            path = waiting.pop()
            if path in page:
                continue
            status, kind, text = get(port, path)
            page[path] = status
            # what HTML, CSS and modules load by themselves
            named = re.findall(r'(?:src|href)="([^"#]+)"', text) if kind == "text/html" else []
            named += re.findall(r"""(?:@import|url\()\s*["']?([^"')]+)""", text) if kind == "text/css" else []
            named += re.findall(r"""(?:from|import|fetch\()\s*["']([^"']+)["']""", text) if "javascript" in kind else []
            for one in named:
                whole = urljoin(url + path, one)
                if urlsplit(whole).netloc == urlsplit(url).netloc:
                    waiting += [urlsplit(whole).path] if not one.startswith("/v1/") else []
                elif urlsplit(whole).scheme != "data":
                    foreign.append(one)
        message = {"model": json.loads(get(port, "/v1/models")[2])["data"][0]["id"]}
        message["messages"] = [{"role": "user", "content": question}]
        status, _kind, text = get(port, "/v1/chat/completions", message)
        api = {path: get(port, path)[0] for path in ("/health", "/metrics", "/openapi.json")}
        process.send_signal(signal.SIGTERM)
        code = process.wait(SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    answer = json.loads(text)
    print(json.dumps({"page": page, "foreign": foreign, "status": status, "api": api, "code": code, "answer": answer}))


if __name__ == "__main__":
    main(sys.argv[2:], sys.argv[1])
