"""Read a model's width and number of blocks off its transformers configuration, whatever the architecture calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mindmerger.errors import CheckpointError


@dataclass(frozen=True)
class Sizes:
    """Hidden width and number of blocks (of the encoder half in an encoder–decoder)."""

    width: int
    layers: int


def sizes_of(config: Any) -> Sizes:
    """Sizes from optimum's normalised configuration; an architecture that it does not know must use the usual names.

    Raises CheckpointError when neither finds them.
    """
    from optimum.utils import NormalizedConfigManager

    config = config.get_text_config(encoder=True) if config.is_encoder_decoder else config.get_text_config()
    try:
        normalised = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
        return Sizes(int(normalised.hidden_size), int(normalised.num_layers))
    except (KeyError, AttributeError):
        pass
    try:
        return Sizes(int(config.hidden_size), int(config.num_hidden_layers))
    except AttributeError as error:
        raise CheckpointError(f"cannot read the width of a {config.model_type!r} model from its config.json") from error
