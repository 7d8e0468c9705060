"""Load a bundle: check its files, and bring up the encoder and the LLM side by side."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from mindmerger import devices
from mindmerger.bundle import Bundle, open_bundle
from mindmerger.errors import BundleError, InputError, ModelError
from mindmerger.graph import MergerGraph
from mindmerger.i18n import _
from mindmerger.limits import check_bundle
from mindmerger.llama import LLM, default_threads, supports_gpu
from mindmerger.model import MergedModel
from mindmerger.reclaim import give_memory_back
from mindmerger.tokenizer import QuestionTokenizer

T = TypeVar("T")


def load(
    bundle: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    context: int | None = None,
    device: str = "auto",
    gpu_layers: int | None = None,
    low_memory: bool = False,
    verbose: bool = False,
) -> MergedModel:
    """Load a bundle: a folder, the name of one that is installed, or (None) the default.

    `threads` is for the encoder and the LLM each, which take turns (default: the cores this process may use). `context`
    is the longest sequence in tokens (default: the bundle's). `verbose` lets llama.cpp talk on stderr.

    `device` is "auto", "cpu", "cuda", "rocm", "directml", "coreml" or "openvino"; `gpu_layers` of the LLM go to the GPU
    (None: all where llama.cpp was built for one, -1: all). What is not there is replaced by the CPU with a notice: a
    warning of the logger "mindmerger", and in the model's `notices`. Not tested on GPUs yet.

    `low_memory` releases the encoder and its tokenizer after each use and loads them again for the next questions, which
    takes about as long as a start.
    """
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 1):
        raise InputError(_("context must be a whole number of tokens, at least 1"))
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 512):
        raise InputError(_("threads must be a whole number from 1 to 512"))
    devices.check(device, gpu_layers)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    count = default_threads() if threads is None else threads
    check_bundle(opened, context, count)

    def load_encoder() -> tuple[QuestionTokenizer, MergerGraph, list[str]]:
        providers, notices = devices.choose_providers(device, _available_providers())
        graph = MergerGraph(
            opened.merger,
            width=manifest.llm.width,
            vocabulary=manifest.encoder.vocabulary,
            threads=count,
            gate=manifest.gate,
            providers=providers,
            keep=not low_memory,
        )
        tokenizer = QuestionTokenizer(opened.tokenizer, manifest.encoder.max_tokens, manifest.encoder.vocabulary)
        if graph.provider != providers[0]:
            notices.append(
                _("the encoder runs on the CPU: {provider} does not start on this machine").format(
                    provider=providers[0]
                )
            )
        return tokenizer, graph, notices

    def load_llm(layers: int) -> LLM:
        size = context or manifest.llm.context
        return LLM(opened.llm(), context=size, threads=count, gpu_layers=layers, verbose=verbose)

    # The two halves of a start are about as long as each other, and mostly native code.
    encoder = _Background(load_encoder)
    llm = None
    try:
        layers, notices = devices.choose_layers(device, gpu_layers, device != "cpu" and supports_gpu())
        try:
            llm = load_llm(layers)
        except ModelError:
            if not layers or gpu_layers is not None:
                raise
            llm = load_llm(0)
            notices.append(_("the LLM runs on the CPU: it could not be loaded to the GPU, which may lack memory"))
        _check_llm(opened, llm)
        if not llm.embeddings.exact and manifest.gate is not None:
            # Reads embeddings of rarer types, and takes a quarter of a second to import: here, while the encoder loads.
            importlib.import_module("gguf")
        tokenizer, graph, encoder_notices = encoder.result()
    except BaseException:
        if llm is not None:
            llm.close()
        encoder.wait()
        raise
    notices += encoder_notices
    for notice in notices:
        _log_notice(notice)
    give_memory_back()  # what parsing and opening left behind
    return MergedModel(opened, tokenizer, graph, llm, notices=notices, low_memory=low_memory)


def _available_providers() -> list[str]:
    from mindmerger.onnx_runtime import onnx_runtime

    return list(onnx_runtime().get_available_providers())


def _log_notice(notice: str) -> None:
    import logging

    # without any configuration Python writes warnings to stderr as they are
    logging.getLogger("mindmerger").warning("mindmerger: %s", notice)


class _Background(Generic[T]):
    """A call in a thread of its own, whose result or error is asked for later."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._value: T | None = None
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._value = call()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="mindmerger-load", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()

    def result(self) -> T:
        self.wait()
        if self._error is not None:
            raise self._error
        return cast(T, self._value)


def _check_llm(bundle: Bundle, llm: LLM) -> None:
    expected = bundle.manifest.llm
    if (llm.width, llm.vocabulary) != (expected.width, expected.vocabulary):
        raise BundleError(
            _(
                "the LLM has width {width} and {vocabulary} tokens, and the bundle was made for width "
                "{expected_width} and {expected_vocabulary} tokens: it is another LLM, export the bundle "
                "again"
            ).format(
                width=llm.width,
                vocabulary=llm.vocabulary,
                expected_width=expected.width,
                expected_vocabulary=expected.vocabulary,
            )
        )
