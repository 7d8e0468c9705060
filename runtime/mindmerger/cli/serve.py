"""mm-serve: answer over HTTP, with the OpenAI API and a page for browsers.

Heavy imports are inside the command, so that --help is immediate.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mindmerger.cli import completion_option, run_body, run_command
from mindmerger.devices import DEVICES
from mindmerger.errors import InputError

if TYPE_CHECKING:
    import socket

    from mindmerger.model import MergedModel
    from mindmerger.serve.guard import Rules

KEY_VARIABLE = "MINDMERGER_API_KEY"
_MIN_KEY = 16
_MAX_KEY_BYTES = 4096
_CONTEXT = 1024  # positions of a slot that are set aside without asking

_EPILOG = f"""\b
Examples:
  mm-serve                                  then open the address that it prints
  mm-serve --port 8000 --slots 4
  mm-serve --host 0.0.0.0 --api-key-file key.txt
  curl http://127.0.0.1:8017/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "mindmerger", "messages": [{{"role": "user", "content": "¿Cuánto es 15 + 27?"}}]}}'

\b
Addresses: / (the page), /v1/models, /v1/chat/completions, /v1/completions,
/v1/explain, /health, /metrics, /openapi.json (the description of all of them).

stdout is one line, the address, as soon as it answers. Ctrl-C or SIGTERM: nothing
new is taken and what runs is finished; a second one stops at once. Any other
address than this machine's own needs an API key: --api-key-file, or ${KEY_VARIABLE}.
Nothing is sent anywhere: it works without a network.

\b
Exit codes:
  0    stopped in order
  2    wrong command line
  3    an option cannot be used; the port is in use
  4    the bundle is missing, damaged or of an unknown version
  5    the models could not be loaded or run on this machine
  130  stopped at once with Ctrl-C
  143  stopped at once by SIGTERM
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--bundle", metavar="DIR_OR_NAME", help="The bundle to serve: a folder or an installed name.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8017, show_default=True, metavar="N", help="0: any that is free."
)
@click.option("--slots", type=click.IntRange(min=1), default=16, show_default=True, help="Questions answered at once.")
@click.option(
    "--queue",
    type=click.IntRange(0, 100_000),
    default=64,
    show_default=True,
    help="Questions that may wait for a slot.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 10**6, min_open=True),
    default=300.0,
    show_default=True,
    metavar="S",
    help="Seconds after which an answer ends with what it has.",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Room for N tokens in each slot: question and answer (default: the bundle's, at most {_CONTEXT}).",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"A file with the key that clients must send (default: ${KEY_VARIABLE}, else none).",
)
@click.option("--allow-host", multiple=True, metavar="NAME", help="A further name of this machine; may be given again.")
@click.option(
    "--allow-origin", multiple=True, metavar="URL", help="A web page's origin that may ask; may be given again."
)
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="CPU threads (default: the cores).")
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="What computes.")
@click.option("--gpu-layers", type=int, metavar="N", help="Layers of the LLM that go to the GPU; -1: all.")
@click.option("--quiet", "-q", is_flag=True, help="Nothing on stderr but errors.")
@click.option("--verbose", "-v", is_flag=True, help="A line on stderr for each request.")
@completion_option
@click.option("--version", is_flag=True, help="Print the version and exit.")
def command(version: bool, **options: Any) -> None:
    """Answer questions over HTTP: the OpenAI API, and a page for browsers at /."""
    if version:
        import mindmerger

        click.echo(f"mm-serve {mindmerger.__version__}")
        return
    run_body(lambda: _run(_Request(**options)))


@dataclass(frozen=True)
class _Request:
    """The command line."""

    bundle: str | None
    host: str
    port: int
    slots: int
    queue: int
    timeout: float
    context: int | None
    api_key_file: Path | None
    allow_host: tuple[str, ...]
    allow_origin: tuple[str, ...]
    threads: int | None
    device: str
    gpu_layers: int | None
    quiet: bool
    verbose: bool

    def note(self, text: str) -> None:
        if not self.quiet:
            print(f"mm-serve: {text}", file=sys.stderr, flush=True)


def _run(request: _Request) -> None:
    if request.quiet and request.verbose:
        raise click.UsageError("--quiet and --verbose exclude each other.")
    _check_installed()
    key = _api_key(request)
    # before the seconds that loading may take
    rules = _rules(request, key)
    from mindmerger.serve.server import bind

    with bind(request.host, request.port) as found, _load(request) as model:
        code = _serve(request, model, rules, found)
    if code:
        raise click.exceptions.Exit(code)


def _serve(request: _Request, model: MergedModel, rules: Rules, found: socket.socket) -> int:
    from mindmerger.serve.app import Service
    from mindmerger.serve.engine import Engine, Limits
    from mindmerger.serve.server import serve, url

    engine = Engine(model, Limits(request.slots, request.queue, request.timeout))
    app = Service(engine, rules).app()

    def ready() -> None:
        print(url(found), flush=True)
        request.note(f"serving {model.manifest.name}; Ctrl-C stops it")

    def stop() -> None:
        request.note("stopping: what runs is finished; once more stops at once")
        engine.stop()

    engine.start()
    try:
        return serve(app, found, on_ready=ready, on_stop=stop, on_force=engine.stop_now, access_log=request.verbose)
    finally:
        engine.close()


def _load(request: _Request) -> MergedModel:
    import logging

    from mindmerger.bundle import resolve
    from mindmerger.loading import load
    from mindmerger.manifest import read_manifest

    if request.quiet:
        logging.getLogger("mindmerger").setLevel(logging.ERROR)  # notices are talk
    folder = resolve(request.bundle)
    # Each slot has as much, and most questions need a fraction of what the LLM could read.
    context = request.context or min(_CONTEXT, read_manifest(folder).llm.context)
    return load(folder, threads=request.threads, context=context, device=request.device, gpu_layers=request.gpu_layers)


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("starlette", "uvicorn", "pydantic", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise InputError(f"mm-serve needs {', '.join(missing)}: pip install 'mindmerger[serve]'")


def _rules(request: _Request, key: str | None) -> Rules:
    from mindmerger.serve.app import OPEN_PATHS
    from mindmerger.serve.guard import Rules, is_loopback, lower_all

    if key is None and not is_loopback(request.host):
        raise InputError(
            f"--host {request.host} can be reached from other machines: give an API key with --api-key-file "
            f"or ${KEY_VARIABLE}"
        )
    for origin in request.allow_origin:
        scheme, separator, rest = origin.partition("://")
        if scheme not in ("http", "https") or not separator or not rest or "/" in rest.rstrip("/") or "*" in rest:
            raise InputError(f"--allow-origin {origin!r} is no origin: give one as in https://example.org")
    return Rules(
        request.host, key, lower_all(request.allow_host), lower_all(request.allow_origin), frozenset(OPEN_PATHS)
    )


def _api_key(request: _Request) -> str | None:
    path = request.api_key_file
    if path is None:
        key, where = os.environ.get(KEY_VARIABLE), f"${KEY_VARIABLE}"
        if not key:
            return None
    else:
        where = str(path)
        key = _read_key(path)
        if sys.platform != "win32" and path.stat().st_mode & 0o077:
            request.note(f"{path} can be read by other users of this machine: chmod 600 {path}")
    key = key.strip()
    if len(key) < _MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"the API key in {where} must be {_MIN_KEY} or more letters, digits and signs without spaces: make one with "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return key


def _read_key(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): --api-key-file is a file with one line") from None


def main() -> None:
    """The entry point of mm-serve."""
    run_command(command, "mm-serve")


if __name__ == "__main__":
    main()
