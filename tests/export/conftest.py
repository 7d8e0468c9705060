"""Fixtures of export's tests: tiny checkpoints made once, and a cache folder that is not the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mindmerger_export.bundle_writer import Request, export_bundle
from tests import tiny_torch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny models lose more to threads that wait for each other than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the real cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind of encoder; both with an adapter of the LLM."""
    return {kind: tiny_torch.checkpoint(tmp_path_factory.mktemp(kind), kind, adapter=True) for kind in ("bert", "mt5")}


@pytest.fixture(scope="session", params=["bert", "mt5"])
def exact(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> tuple[Path, Path]:
    """A checkpoint and its bundle without any quantisation."""
    checkpoint = checkpoints[request.param]
    out = checkpoint.parent / "exact"
    return checkpoint, export_bundle(Request(str(checkpoint), out, precision="fp32", llm_type="f32"))
