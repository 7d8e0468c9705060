"""Which hardware answers: ONNX Runtime's provider for the encoder, llama.cpp's layers for the LLM.

Decided from what the installed libraries say they can do; what was wished for and is not there becomes a notice and the
CPU, not an error. Knows neither library: both answers are handed in, which is how it is tested on machines without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from mindmerger.errors import InputError
from mindmerger.i18n import _

CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "rocm": "MIGraphXExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
DEVICES = ("auto", "cpu", *PROVIDERS)
# Those that run the whole quantised graph. CoreML and OpenVINO hand much of it back to the CPU: only when asked for.
_AUTOMATIC = ("cuda", "rocm", "directml")
ALL_LAYERS = -1  # to llama.cpp too
_MAX_LAYERS = 10_000


def choose_providers(device: str, available: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """ONNX Runtime's providers to try, the CPU last, and notices; from those that the installed library has."""
    named = PROVIDERS.get(device)
    wanted = [PROVIDERS[name] for name in _AUTOMATIC] if device == "auto" else [named] if named else []
    providers = [provider for provider in wanted if provider in available][:1]
    notices = []
    if named and not providers:
        notices.append(
            _("the encoder runs on the CPU: this ONNX Runtime has no {provider} (it has {providers})").format(
                provider=named, providers=", ".join(available) or "-"
            )
        )
    return (*providers, CPU), notices


def choose_layers(device: str, gpu_layers: int | None, offload: bool) -> tuple[int, list[str]]:
    """How many of the LLM's layers go to a GPU, and notices; `offload`: llama.cpp was built for one."""
    layers = (0 if device == "cpu" else ALL_LAYERS) if gpu_layers is None else gpu_layers
    if not layers or offload:
        return layers, []
    asked_for = device in PROVIDERS or gpu_layers is not None
    if not asked_for:
        return 0, []
    return 0, [_("the LLM runs on the CPU: this llama-cpp-python was built without a GPU backend")]


def check(device: str, gpu_layers: int | None) -> None:
    """Refuse wishes that are wrong on any machine."""
    if device not in DEVICES:
        raise InputError(
            _("device must be one of {devices}, not {device}").format(
                devices=", ".join(DEVICES), device=f"{device!r:.40}"
            )
        )
    if gpu_layers is None:
        return
    if isinstance(gpu_layers, bool) or not isinstance(gpu_layers, int) or not ALL_LAYERS <= gpu_layers <= _MAX_LAYERS:
        raise InputError(
            _("gpu_layers must be a whole number from -1 (all) to {most}, not {value}").format(
                most=_MAX_LAYERS, value=f"{gpu_layers!r:.40}"
            )
        )
    if device == "cpu" and gpu_layers:
        raise InputError(_("device='cpu' and gpu_layers contradict each other: leave one of them out"))
