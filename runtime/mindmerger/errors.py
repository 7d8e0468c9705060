"""Every error that MindMerger raises on purpose.

The contract: whatever a user can cause (a bad question, a damaged bundle, a machine that is too small) ends in a
`MindMergerError` whose message is one sentence that says what is wrong and what to do. Commands print that sentence to
stderr and leave with the class's `exit_code`; anything else that escapes is a defect of ours. The codes are documented
in README.md; 2 is a wrong command line (click's own) and 130 is Ctrl-C.
"""


class MindMergerError(Exception):
    """Base of all errors raised on purpose. Exit code 1."""

    exit_code: int = 1


class InputError(MindMergerError):
    """The question or an option cannot be used: empty, too long, not text, out of range. Exit code 3."""

    exit_code = 3


class BundleError(MindMergerError):
    """A bundle or one of its files is missing, damaged or of an unknown version. Exit code 4."""

    exit_code = 4


class ModelError(MindMergerError):
    """A model could not be loaded or run on this machine (memory, disk, native failure). Exit code 5."""

    exit_code = 5


class CheckpointError(MindMergerError):
    """A checkpoint is missing, damaged, or does not fit its encoder or LLM. Exit code 6."""

    exit_code = 6


class DataError(MindMergerError):
    """Training or evaluation data cannot be read. Exit code 7."""

    exit_code = 7


class ParityError(MindMergerError):
    """An export does not compute what torch computed; nothing was written. Exit code 8."""

    exit_code = 8
