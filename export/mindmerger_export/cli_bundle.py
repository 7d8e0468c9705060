"""`mm-export inspect`, `verify`, `pack`, `unpack`, `standalone`: what is done with a bundle that is there.

None of them needs torch.
"""

from __future__ import annotations

from pathlib import Path

import click

from mindmerger.cli import run_body


@click.command("inspect")
@click.argument("bundle", metavar="BUNDLE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect_command(bundle: str, as_json: bool) -> None:
    """Say what is in BUNDLE: parts, sizes, and the figures of its report.

    BUNDLE is a folder, the name of an installed one, or a packed file.
    """

    def body() -> None:
        import json

        from mindmerger_export.inspection import inspect, shown

        found = inspect(bundle)
        print(json.dumps(found, ensure_ascii=False, indent=2) if as_json else shown(found))

    run_body(body)


@click.command("verify")
@click.argument("bundle", metavar="BUNDLE")
def verify_command(bundle: str) -> None:
    """Check BUNDLE on this machine: manifest, hashes, that it loads, and its golden questions.

    Exit codes: 0 sound, 4 damaged, 5 does not run here, 8 most golden questions are answered otherwise.
    """

    def body() -> None:
        from mindmerger_export.inspection import verify
        from mindmerger_export.talk import Console

        with Console("mm-export") as talk:
            for line in verify(bundle, talk):
                print(line, flush=True)

    run_body(body)


@click.command(
    "pack",
    epilog="""\b
Example:
  mm-export pack my-bundle my-bundle.mmb""",
)
@click.argument("bundle", metavar="BUNDLE")
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an existing FILE.")
def pack_command(bundle: str, file: Path | None, force: bool) -> None:
    """Make one FILE of BUNDLE, to send or to keep. [default: NAME.mmb here]

    An uncompressed zip; each file in it begins at a page, so that the GGUF could be mapped where it lies. The same bundle
    gives the same bytes. Files that a Python package ships stay there.
    """

    def body() -> None:
        from mindmerger_export.pack import pack
        from mindmerger_export.talk import Console
        from mindmerger_export.workspace import terminable

        with Console("mm-export") as talk, terminable():
            made = pack(bundle, file, force=force, talk=talk)
        print(made)

    run_body(body)


@click.command("unpack")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.argument("out", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
def unpack_command(file: Path, out: Path | None, force: bool) -> None:
    """Make a folder of FILE, a packed bundle. [default: FILE without .mmb, here]

    Nothing is trusted: names stay inside the folder, sizes and sha256 are those of the manifest, and DIR gets its name when
    all is right. Exit codes: 0 done, 3 DIR exists, 4 damaged or no packed bundle, 5 no space.
    """

    def body() -> None:
        from mindmerger_export.pack import unpack
        from mindmerger_export.talk import Console
        from mindmerger_export.workspace import terminable

        with Console("mm-export") as talk, terminable():
            made = unpack(file, out, force=force, talk=talk)
        print(made)

    run_body(body)


@click.command(
    "standalone",
    epilog="""\b
Example:
  mm-export standalone mindmerger dist/desktop/bundle""",
)
@click.argument("bundle", metavar="BUNDLE")
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
def standalone_command(bundle: str, out: Path, force: bool) -> None:
    """Make a folder DIR of BUNDLE that needs no Python package beside it, to ship with an application.

    An LLM that a package ships, or that is prepared at first use, becomes a file of the folder. Exit codes: 0 done, 3 DIR
    exists, 4 damaged bundle or missing package, 5 no space.
    """

    def body() -> None:
        from mindmerger_export.standalone import make_standalone
        from mindmerger_export.talk import Console
        from mindmerger_export.workspace import terminable

        with Console("mm-export") as talk, terminable():
            made = make_standalone(bundle, out, force=force, talk=talk)
        print(made)

    run_body(body)


def add_commands(group: click.Group) -> None:
    """Put them under `mm-export`."""
    for command in (inspect_command, verify_command, pack_command, unpack_command, standalone_command):
        group.add_command(command)
