"""Several processes for one run: how many are wanted, and starting them as one group.

`torchrun`, and `accelerate launch` for GPUs, start the whole group themselves. `accelerate launch --cpu --num_processes 2`
starts one process unless it is given MPI, and says nothing of it; that one finds out here what was asked for, and starts the
group.
What this module does not know: what the processes do (engine.py shares out the work).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mindmerger.errors import InputError

# Set by every launcher that starts all processes itself (torchrun, accelerate on GPUs, MPI).
_GROUP_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LAST_LINES = 30


def group_size(environment: Mapping[str, str]) -> int | None:
    """How many processes the group has that this one was started in; None for a process on its own."""
    for name in _GROUP_SIZES:
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return None


def processes_to_start(asked: int | None) -> int:
    """How many processes this one has to start; 1 when it is a member of a group, or alone as it should be.

    Raises InputError when --processes and a launcher ask for different numbers.
    """
    size = group_size(os.environ)
    if size is not None:
        if asked not in (None, size):
            raise InputError(f"--processes {asked}, in a group of {size} processes: leave --processes to the launcher")
        return 1
    # accelerate sets the first for every program that it launches, the second where it was asked for more than one process.
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if not by_accelerate:
        return asked or 1
    told = _told_to_accelerate()
    if told is None and asked is None:
        print(
            "mm-train: accelerate was asked for several processes and launched one, which goes on alone: the numbers are the "
            "same; mm-train --processes N starts N",
            file=sys.stderr,
        )
    return asked or told or 1


def _told_to_accelerate() -> int | None:
    """The number of processes on the command line of the `accelerate launch` that started this process; None: unknown."""
    import psutil

    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:
        return None
    return told_in(words)


def told_in(words: Sequence[str]) -> int | None:
    """The number of processes that a command line of `accelerate launch` asks for; None where it is another program's."""
    options = _options(words)
    if options is None:
        return None
    from accelerate.commands.config import load_config_from_file
    from accelerate.commands.config.config_args import default_config_file
    from accelerate.commands.launch import launch_command_parser

    try:
        with contextlib.redirect_stderr(None):
            told = launch_command_parser().parse_args(list(options))
        count, machines = told.num_processes, told.num_machines
        # As accelerate does: the user's own configuration does not count beside --cpu.
        if count is None and (told.config_file or (Path(default_config_file).is_file() and not told.cpu)):
            count = load_config_from_file(told.config_file).num_processes
    except (SystemExit, OSError, ValueError):
        return None
    if (machines or 1) > 1:
        raise InputError("accelerate starts no CPU processes on several machines without MPI: use torchrun there")
    return int(count) if count else None


_PROGRAMS = ("accelerate", "accelerate.exe", "accelerate.commands.accelerate_cli", "accelerate_cli.py")


def _options(words: Sequence[str]) -> Sequence[str] | None:
    """What follows `accelerate launch`, however that was called."""
    names = [Path(word).name for word in words]
    for index, name in enumerate(names):
        if name in _PROGRAMS and names[index + 1 : index + 2] == ["launch"]:
            return words[index + 2 :]
        if name in ("accelerate-launch", "accelerate-launch.exe", "accelerate.commands.launch"):
            return words[index + 1 :]
        if Path(words[index]).parts[-3:] == ("accelerate", "commands", "launch.py"):
            return words[index + 1 :]
    return None


def run_group(count: int, arguments: Sequence[str], module: str = "mindmerger_train.cli") -> int:
    """Run `python -m MODULE ARGUMENTS` in `count` processes, on this machine; returns the exit code.

    The first one's stderr is this process's; of the others, what they said is shown when they fail and the first did not.
    Raises InputError when there are GPUs, but fewer than processes.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus = torch.cuda.device_count()
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if gpus and count > gpus and not on_cpu:
        raise InputError(f"{count} processes want a GPU each, and there are {gpus}: give --processes {gpus}")
    # Without this each process would take all cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    # Failures are told below, in one sentence.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="mm-train-") as folder:
        silent = dict.fromkeys(range(1, count), Std.ERR)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=silent),
        )
        try:
            elastic_launch(config, sys.executable)("-m", module, *arguments)
        except ChildFailedError as error:
            own = {rank: failure for rank, failure in error.failures.items() if failure.exitcode > 0}
            rank, failure = min((own or error.failures).items(), key=lambda item: item[0])
            if rank:
                _show_last_words(Path(folder), rank)
            elif failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                print(f"mm-train: process {rank} of {count} was ended by {name}", file=sys.stderr)
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        except SignalException as error:
            return 128 + int(error.sigval)
    return 0


def _show_last_words(folder: Path, rank: int) -> None:
    for path in folder.glob(f"**/{rank}/stderr.log"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        print("\n".join([f"mm-train: process {rank} failed:", *lines]), file=sys.stderr)
