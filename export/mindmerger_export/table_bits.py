"""How many bits the encoder's embedding table takes in a w8 graph: 4 where the soft prompt hardly changes by it, else 8.

The table is half of a multilingual encoder and more, and a token reads one row of it. What rounding that row does to the soft
prompt depends on what the blocks above make of the context: little is left of it in a trained encoder, most of it in a random
one. So it is measured, in torch, before the graph is written. What this module does not know: graphs, files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mindmerger.graph import Merged
from mindmerger_export.graph import MergerModule, embedding_table
from mindmerger_export.quantise import BLOCK, exact_q4, symmetric
from mindmerger_export.rows import ROWS_COSINE, Floats, compare, cosine

# The part of what w8's bounds allow that the table may use up: the matrices round too.
_SHARE = 0.7


@dataclass(frozen=True)
class TableBits:
    """`bits` to give the table, and the cosines of soft prompt rows with 4 bits that it was decided by (None: exact)."""

    bits: int
    cosine_mean: float | None = None
    cosine_min: float | None = None

    def to_json(self) -> dict[str, Any]:
        if self.cosine_mean is None:
            return {}
        return {"table_in_4_bits": {"cosine_mean": self.cosine_mean, "cosine_min": self.cosine_min}}


def table_bits(module: MergerModule, texts: Sequence[Sequence[int]]) -> TableBits:
    """Measure on `texts`, ids of `module`'s whole vocabulary."""
    table = embedding_table(module.encoder)
    used = np.unique(np.concatenate([np.asarray(ids, dtype=np.int64) for ids in texts]))
    rows = table.weight.detach()[torch.from_numpy(used)].float().numpy()
    if rows.shape[1] % BLOCK or exact_q4(rows) is not None:
        return TableBits(4)
    found = []
    for ids in texts:
        wanted = _soft_prompt(module, ids)
        with _rounded(module, table):
            found.append(compare(wanted, _soft_prompt(module, ids)))
    count = sum(row.rows for row in found)
    mean = sum(row.cosine_mean * row.rows for row in found) / count
    worst = min(row.cosine_min for row in found)
    least_mean, least_worst = (1 - _SHARE * (1 - bound) for bound in ROWS_COSINE["w8"])
    return TableBits(4 if mean >= least_mean and worst >= least_worst else 8, cosine(mean), cosine(worst))


def _soft_prompt(module: MergerModule, ids: Sequence[int]) -> Merged:
    row = torch.tensor([list(ids)], dtype=torch.int64)
    with torch.no_grad():
        # The class's own: what a gate says is judged on the graph itself.
        return Merged(MergerModule.forward(module, row, torch.ones_like(row))[0].numpy(), None)


@contextmanager
def _rounded(module: nn.Module, table: nn.Embedding) -> Iterator[None]:
    """Inside, what is looked up in `table` is as a 4-bit table would have it: its rows are rounded one by one."""
    called = False

    def rounded(_module: nn.Module, _inputs: Any, looked_up: torch.Tensor) -> torch.Tensor:
        nonlocal called
        called = True
        rows: Floats = looked_up.reshape(-1, looked_up.shape[-1]).numpy()
        codes, scales = symmetric(rows, 4)
        return torch.from_numpy(codes * np.repeat(scales, BLOCK, axis=1)).reshape(looked_up.shape)

    # T5 has its table twice, as two modules with one weight; it is the other one that is called.
    same = [one for one in module.modules() if isinstance(one, nn.Embedding) and one.weight is table.weight]
    handles = [one.register_forward_hook(rounded) for one in same]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        raise AssertionError("the encoder does not look tokens up in its table of embeddings")
