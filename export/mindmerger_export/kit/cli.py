"""`mm-offline-kit`: everything that a machine without a network needs, in one folder. Heavy imports are inside the command."""

from __future__ import annotations

from pathlib import Path

import click

from mindmerger.cli import run_body, run_command


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mm-offline-kit
  mm-offline-kit --bundle my-bundle --out my-kit
  mm-offline-kit --any-processor --out kit

The kit is for machines like this one: Linux, the same architecture, the same Python (major.minor), a glibc that is not
older than the packages need. This needs a network, and minutes where llama-cpp-python has to be built. Copy the folder, run
its install.sh.

Progress goes to stderr; the kit's folder goes to stdout.
Exit codes: 0 done, 1 packages cannot be fetched or built, 2 wrong command line, 3 bad option, existing folder or
another platform, 4 missing or damaged bundle, 5 no space, 130 interrupted, 143 terminated.""",
)
@click.option("--bundle", metavar="DIR_OR_NAME", help="The bundle to take along. [default: the embedded default]")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="The kit's folder. [default: NAME-kit-PLATFORM here]"
)
@click.option(
    "--any-processor",
    is_flag=True,
    help="Build llama.cpp for every processor of the architecture of the last ten years (AVX2; NEON), not for this one. Takes "
    "minutes; without it a wheel that pip has kept is used, and install.sh refuses a processor that lacks what it uses.",
)
@click.option(
    "--mindmerger",
    metavar="WHEEL|DIR|REQUIREMENT",
    help="What to install as MindMerger. [default: the source checkout that runs, else this version from the package index]",
)
@click.option(
    "--notice",
    "notices",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A text for the notices, as the licence of a bundle's models; repeatable.",
)
@click.option("--force", is_flag=True, help="Replace an existing kit.")
@click.option("--version", is_flag=True, help="Print the version and exit.")
def command(
    bundle: str | None,
    out: Path | None,
    any_processor: bool,
    mindmerger: str | None,
    notices: tuple[Path, ...],
    force: bool,
    version: bool,
) -> None:
    """Make a folder that installs MindMerger with a bundle on a machine without a network.

    Wheels of all packages, the bundle with its LLM, install.sh, notices of all licences, a bill of materials (CycloneDX), and
    checksums.
    """
    if version:
        from mindmerger import __version__

        click.echo(f"mm-offline-kit {__version__}")
        return

    def body() -> None:
        from mindmerger_export.kit.make import KitRequest, make_kit
        from mindmerger_export.talk import Console
        from mindmerger_export.workspace import terminable

        check_installed()
        request = KitRequest(bundle, out, mindmerger, any_processor, notices, force)
        with Console("mm-offline-kit") as talk, terminable():
            made = make_kit(request, talk)
            talk.lines([f"mm-offline-kit: {made.bytes / 1e6:.0f} MB; SHA256SUMS has the sha256 {made.sha256}"])
        print(made.folder)

    run_body(body)


def check_installed() -> None:
    """Raises InputError where the packages of the extra are missing."""
    from importlib.util import find_spec

    from mindmerger.errors import InputError

    missing = [name for name in ("build", "cyclonedx", "packaging", "pip") if find_spec(name) is None]
    if missing:
        raise InputError(f"mm-offline-kit needs {', '.join(missing)}: pip install 'mindmerger[kit]' pip")


def main() -> None:
    """The entry point of mm-offline-kit."""
    run_command(command, "mm-offline-kit")


if __name__ == "__main__":
    main()
