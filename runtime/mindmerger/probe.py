"""What native code says, asked in a process of its own: a library that was built for another processor, or a file that
was damaged on purpose, ends the process that touches it, and mm-doctor has to live to tell.

No network: Python's sockets are blocked before anything is loaded, so that what works here works without one.
"""

from __future__ import annotations

import socket
from typing import Any

from mindmerger.child import Document, serve
from mindmerger.errors import MindMergerError, ModelError


class Probe:
    """Answers `llama` and `onnxruntime` (what the libraries can do), `load` (a bundle), `golden` (one question)."""

    def __init__(self) -> None:
        self.model: Any = None

    def answer(self, request: Document) -> Document:
        do = request.pop("do")
        try:
            reply: Document = getattr(self, f"do_{do}")(**request)
            return reply
        except (MindMergerError, MemoryError):
            raise
        except Exception as error:  # a finding of the doctor like any other
            raise ModelError(f"{do} failed ({type(error).__name__}: {error}): report this with the bundle") from None

    def do_llama(self) -> Document:
        from mindmerger.llama import backend

        native = backend()
        text = native.llama_print_system_info().decode("utf-8", "replace")
        features = [
            part.split("=")[0].split(":")[-1].strip() for part in text.split("|") if part.strip().endswith("= 1")
        ]
        return {"features": features, "gpu": bool(native.llama_supports_gpu_offload())}

    def do_onnxruntime(self) -> Document:
        from mindmerger.onnx_runtime import onnx_runtime

        return {"providers": list(onnx_runtime().get_available_providers())}

    def do_load(self, bundle: str, context: int | None) -> Document:
        import mindmerger

        self.model = mindmerger.load(bundle, context=context)
        return {"context": self.model.llm.context}

    def do_golden(self, question: str, tokens: int) -> Document:
        return {"token_ids": self.model.continuation_ids(question, tokens)}


def _refuse(*_: object, **__: object) -> Any:
    raise OSError("the doctor works without a network")


def main() -> None:
    """The child process of mm-doctor."""
    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, _refuse)
    for name in ("create_connection", "getaddrinfo"):
        setattr(socket, name, _refuse)
    serve(Probe().answer)
