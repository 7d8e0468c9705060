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
from mindmerger.i18n import _

if TYPE_CHECKING:
    import socket

    from mindmerger.model import MergedModel
    from mindmerger.serve.guard import Rules

KEY_VARIABLE = "MINDMERGER_API_KEY"
_MIN_KEY = 16
_MAX_KEY_BYTES = 4096
_CONTEXT = 1024  # positions of a slot that are set aside without asking


def _epilog() -> str:
    examples = [
        ("mm-serve", _("then open the address that it prints")),
        ("mm-serve --port 8000 --slots 4", ""),
        ("mm-serve --host 0.0.0.0 --api-key-file key.txt", ""),
        ("curl http://127.0.0.1:8017/v1/chat/completions -H 'Content-Type: application/json' \\", ""),
        (
            '  -d \'{"model": "mindmerger", "messages": [{"role": "user", "content": "¿Cuánto es 15 + 27?"}]}\'',
            "",
        ),
    ]
    addresses = [
        ("/", _("the page")),
        ("/v1/models, /v1/chat/completions, /v1/completions", _("as OpenAI's")),
        ("/v1/explain", _("what the gate says of a question")),
        ("/health, /metrics", _("for who watches it")),
        ("/openapi.json", _("the description of all of these")),
    ]
    codes = [
        ("0", _("stopped in order")),
        ("2", _("wrong command line")),
        ("3", _("an option cannot be used, or the port is in use")),
        ("4", _("the bundle is missing, damaged or of an unknown version")),
        ("5", _("the models cannot be loaded or run on this machine")),
        ("130", _("stopped at once with Ctrl-C")),
        ("143", _("stopped at once by SIGTERM")),
    ]
    return "\n\n".join(
        [
            "\n".join(["\b", _("Examples:"), *(f"  {line:<41} {what}".rstrip() for line, what in examples)]),
            "\n".join(["\b", _("Addresses:"), *(f"  {path:<51} {what}" for path, what in addresses)]),
            _(
                "stdout is one line, the address, as soon as it answers. Ctrl-C or SIGTERM: nothing new is taken and what runs "
                "is finished; a second one stops at once. Any other address than this machine's own needs an API key: "
                "--api-key-file, or {variable}. Nothing is sent anywhere: it works without a network."
            ).format(variable=f"${KEY_VARIABLE}"),
            "\n".join(["\b", _("Exit codes:"), *(f"  {code:<4} {what}" for code, what in codes)]),
        ]
    )


@click.command(
    help=_("Answer questions over HTTP: the OpenAI API, and a page for browsers at /."),
    epilog=_epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--bundle", metavar="DIR_OR_NAME", help=_("The bundle to serve: a folder or an installed name."))
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help=_("The address to listen on."))
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8017,
    show_default=True,
    metavar="N",
    help=_("0: any that is free."),
)
@click.option(
    "--slots", type=click.IntRange(min=1), default=16, show_default=True, help=_("Questions answered at once.")
)
@click.option(
    "--queue",
    type=click.IntRange(0, 100_000),
    default=64,
    show_default=True,
    help=_("Questions that may wait for a slot."),
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 10**6, min_open=True),
    default=300.0,
    show_default=True,
    metavar="S",
    help=_("Seconds after which an answer ends with what it has."),
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help=_("Room for N tokens in each slot: question and answer (default: the bundle's, at most {most}).").format(
        most=_CONTEXT
    ),
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=_("A file with the key that clients must send (default: {variable}, else none).").format(
        variable=f"${KEY_VARIABLE}"
    ),
)
@click.option(
    "--allow-host", multiple=True, metavar="NAME", help=_("A further name of this machine; may be given again.")
)
@click.option(
    "--allow-origin", multiple=True, metavar="URL", help=_("A web page's origin that may ask; may be given again.")
)
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help=_("CPU threads (default: the cores)."))
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    help=_("What computes; what is not there is replaced by the CPU, with a notice."),
)
@click.option("--gpu-layers", type=int, metavar="N", help=_("Layers of the LLM that go to the GPU; -1: all."))
@click.option("--quiet", "-q", is_flag=True, help=_("Nothing on stderr but errors."))
@click.option("--verbose", "-v", is_flag=True, help=_("A line on stderr for each request."))
@completion_option
@click.option("--version", is_flag=True, help=_("Print the version and exit."))
def command(version: bool, **options: Any) -> None:
    """Read the command line."""
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
        raise click.UsageError(_("{one} and {other} exclude each other.").format(one="--quiet", other="--verbose"))
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
        request.note(_("serving {name}; Ctrl-C stops it").format(name=model.manifest.name))

    def stop() -> None:
        request.note(_("stopping: what runs is finished; once more stops at once"))
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
        raise InputError(
            _("mm-serve needs {packages}: pip install 'mindmerger[serve]'").format(packages=", ".join(missing))
        )


def _rules(request: _Request, key: str | None) -> Rules:
    from mindmerger.serve.app import OPEN_PATHS
    from mindmerger.serve.guard import Rules, is_loopback, lower_all

    if key is None and not is_loopback(request.host):
        raise InputError(
            _(
                "--host {host} can be reached from other machines: give an API key with --api-key-file or {variable}"
            ).format(host=request.host, variable=f"${KEY_VARIABLE}")
        )
    for origin in request.allow_origin:
        scheme, separator, rest = origin.partition("://")
        if scheme not in ("http", "https") or not separator or not rest or "/" in rest.rstrip("/") or "*" in rest:
            raise InputError(
                _("--allow-origin {origin!r} is no origin: give one as in https://example.org").format(origin=origin)
            )
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
            request.note(_("{path} can be read by other users of this machine: chmod 600 {path}").format(path=path))
    key = key.strip()
    if len(key) < _MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            _(
                "the API key in {where} must be {least} or more letters, digits and signs without spaces: make one with "
                "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
            ).format(where=where, least=_MIN_KEY)
        )
    return key


def _read_key(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise InputError(
            _("{path} cannot be read ({reason}): --api-key-file is a file with one line").format(
                path=path, reason=error.strerror
            )
        ) from None


def main() -> None:
    """The entry point of mm-serve."""
    run_command(command, "mm-serve")


if __name__ == "__main__":
    main()
