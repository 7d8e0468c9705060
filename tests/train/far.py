"""A second device for machines without one: `far`, whose tensors are computed on the CPU and never meet the CPU's.

PyTorch lets Python stand in for a device (its PrivateUse1 backend). A tensor on `far` holds a CPU tensor; an operation on it
runs there, and one that mixes devices raises, as on a GPU: numbers of no dimension may come along, copies may cross.
So what trains on `far` leaves nothing behind on the CPU, and has the same numbers. It is not `far` from being a GPU in
everything: page-locked memory, kernels, autocast's own list of operations are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.state import PartialState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "far"
_CROSSING = ("aten::_to_copy", "aten::copy_")


class Mixed(RuntimeError):
    """An operation was given tensors of both devices."""


class Far(torch.Tensor):
    """A tensor on the far device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> Far:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Far({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Far) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    far = [tensor for tensor in tensors if isinstance(tensor, Far)]
    name = func._schema.name
    if far and name not in _CROSSING and any(not isinstance(tensor, Far) and tensor.dim() for tensor in tensors):
        raise Mixed(f"{name} of tensors on {NAME} and on the CPU")
    device = kwargs.pop("device", None) if kwargs.get("device") is not None else None
    to_far = torch.device(device).type == NAME if device is not None else bool(far)
    if name == "aten::copy_":
        to_far = isinstance(args[0], Far)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    known = {id(tensor.inner): tensor for tensor in far}

    def placed(value: Any) -> Any:
        if not to_far or not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else Far(value)

    return tree_map(placed, result)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Hook(torch._C._acc.PrivateUse1Hooks):  # type: ignore[name-defined, misc]
    """What PyTorch asks a device about itself. `there` only while a test wants it: the registration is for good."""

    there = False

    def is_available(self) -> bool:
        return _Hook.there

    def has_primary_context(self, device_id: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Module:
    """`torch.far`."""

    @staticmethod
    def is_available() -> bool:
        return _Hook.there

    @staticmethod
    def device_count() -> int:
        return 1 if _Hook.there else 0

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Far:
    return Far(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _inner(target).copy_(_inner(source))
    return target


_library: torch.library.Library | None = None
_everything: torch.library.Library | None = None


def _register() -> None:
    global _library, _everything
    if _library is None:
        _setup_privateuseone_for_python_backend(NAME, _Module(), _Hook())
        # What torch.tensor(..., device="far") needs, where Python is not asked.
        _library = torch.library.Library("aten", "IMPL")
        _library.impl("empty_strided", _empty_strided, "PrivateUse1")
        _library.impl("_copy_from", _copy_from, "PrivateUse1")
        # Autocast is there and casts nothing: which operations it casts is each device's own list.
        _everything = torch.library.Library("_", "IMPL")
        _everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


@contextlib.contextmanager
def far_device() -> Iterator[torch.device]:
    """While this lasts, the machine has a `far` device, which torch and accelerate find before the CPU."""
    _register()
    default = PartialState.default_device
    _Hook.there = True
    PartialState.default_device = property(lambda self: torch.device(NAME, 0))
    PartialState._reset_state()
    try:
        with _Mode():
            yield torch.device(NAME, 0)
    finally:
        _Hook.there = False
        PartialState.default_device = default
        PartialState._reset_state()
