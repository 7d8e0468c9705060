"""The commands of the runtime, one module each, and the manners that they share.

stdout is data, stderr is talk. An error that a user can cause is one sentence on stderr, in the user's language, and the
exit code of its class.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mindmerger.errors import MindMergerError
from mindmerger.i18n import _, speak_in_click

INTERRUPTED = 130
SHELLS = ("bash", "zsh", "fish")

F = TypeVar("F", bound=Callable[..., Any])


def run_command(command: click.Command, name: str) -> None:
    """Run a click command as a process: print errors as sentences, leave with the documented exit code."""
    _make_streams_safe()
    speak_in_click()
    try:
        # click's own standalone mode would turn Ctrl-C into "Aborted!" and code 1
        code = command.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MindMergerError as error:
        _complain(name, str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:  # of the flush above
        _forget_stdout()
        sys.exit(0)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    except MemoryError:
        _complain(name, _("there is not enough memory: close other programs or use a smaller bundle"))
        sys.exit(5)


def run_body(body: Callable[[], None]) -> None:
    """Run the body of a command; Ctrl-C and a closed pipe pass click unseen, which has its own opinion on both."""
    try:
        body()
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader has what it wanted (`| head`): that is no error.
        _forget_stdout()
        raise click.exceptions.Exit(0) from None


def completion_option(function: F) -> F:
    """Give a command --completion SHELL, which prints click's own completion script for it."""

    def show(context: click.Context, _parameter: click.Parameter, shell: str | None) -> None:
        if shell is None or context.resilient_parsing:
            return
        from click.shell_completion import get_completion_class

        found = get_completion_class(shell)
        assert found is not None  # SHELLS are those that click knows
        name = str(context.find_root().info_name)
        variable = f"_{name}_COMPLETE".replace("-", "_").upper()
        click.echo(found(context.command, {}, name, variable).source())
        context.exit()

    return click.option(
        "--completion",
        type=click.Choice(SHELLS),
        is_eager=True,
        expose_value=False,
        callback=show,
        help=_("Print the completion script for this shell and exit."),
    )(function)


def _complain(name: str, sentence: str) -> None:
    from mindmerger.cli.output import paint

    print(paint(f"{name}: {sentence}", sys.stderr, fg="red"), file=sys.stderr)


def _forget_stdout() -> None:
    """Send what is still buffered for stdout nowhere, so that it does not raise again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _make_streams_safe() -> None:
    """A terminal that cannot show a character gets a replacement, not a crash."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
