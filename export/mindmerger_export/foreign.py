"""Other people's libraries at work: what they say is kept off the user's stderr, what they raise becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mindmerger.errors import CheckpointError, MindMergerError


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Its advice and progress bars are about its own loading; stderr is for ours."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def reading(what: str) -> Iterator[None]:
    """transformers and safetensors report damaged files by a dozen exceptions; here they are one CheckpointError."""
    from safetensors import SafetensorError

    try:
        yield
    except MindMergerError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{what} cannot be read ({lines[0][:200]}): is its folder complete?") from None
