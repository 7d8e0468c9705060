"""From a ticket's events to an HTTP answer: whole, or as a stream of server-sent events.

Whoever goes away in the middle frees the slot. Knows OpenAI's forms and nothing about models.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mindmerger.generation import Generation
from mindmerger.serve import responses as said
from mindmerger.serve.failures import Json, encode, from_error
from mindmerger.serve.tickets import Started, Ticket

T = TypeVar("T")
GONE = 499
"""Status of an answer that nobody waits for any more; it is counted, never sent."""


class ClientGone(Exception):
    """The connection was closed before the answer was whole."""


class Form(Protocol):
    """How one of OpenAI's calls words its answers; made anew for each request."""

    def whole(self, result: Generation, waited_ms: float) -> said.Body: ...

    def first(self, started: Started | None) -> said.Body | None: ...

    def text(self, text: str) -> said.Body: ...

    def last(self, result: Generation, waited_ms: float) -> said.Body: ...

    def usage(self, result: Generation) -> said.Body: ...


class _Base:
    def __init__(self, model: str, bos: int, ignored_messages: int, with_usage: bool, prefix: str) -> None:
        self._bos = bos
        self._ignored = ignored_messages
        # with the usage asked for, every chunk has the field
        self._null: dict[str, Any] = {"usage": None} if with_usage else {}
        self._head: dict[str, Any] = {"id": prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}

    def _extension(self, result: Generation, waited_ms: float) -> said.Extension:
        return said.extension(result, waited_ms, self._ignored)

    def _steering(self, started: Started | None) -> dict[str, Any]:
        return {} if started is None else {"mindmerger": said.steering(started, self._ignored)}


class ChatForm(_Base):
    """/v1/chat/completions."""

    def __init__(self, model: str, bos: int, ignored_messages: int, with_usage: bool) -> None:
        super().__init__(model, bos, ignored_messages, with_usage, "chatcmpl-")

    def whole(self, result: Generation, waited_ms: float) -> said.Body:
        message = said.ChatMessage(role="assistant", content=result.text, refusal=None)
        choice = said.ChatChoice(index=0, message=message, logprobs=None, finish_reason=said.finish(result))
        return said.ChatCompletion(
            **self._head,
            object="chat.completion",
            choices=[choice],
            usage=said.usage(result, self._bos),
            mindmerger=self._extension(result, waited_ms),
        )

    def _chunk(self, delta: said.Delta, finish: said.Finish | None = None, **more: Any) -> said.ChatChunk:
        choice = said.ChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=finish)
        return said.ChatChunk(**self._head, object="chat.completion.chunk", choices=[choice], **self._null, **more)

    def first(self, started: Started | None) -> said.Body | None:
        return self._chunk(said.Delta(role="assistant", content="", refusal=None), **self._steering(started))

    def text(self, text: str) -> said.Body:
        return self._chunk(said.Delta(content=text))

    def last(self, result: Generation, waited_ms: float) -> said.Body:
        return self._chunk(said.Delta(), said.finish(result), mindmerger=self._extension(result, waited_ms))

    def usage(self, result: Generation) -> said.Body:
        usage = said.usage(result, self._bos)
        return said.ChatChunk(**self._head, object="chat.completion.chunk", choices=[], usage=usage)


class CompletionForm(_Base):
    """/v1/completions."""

    def __init__(self, model: str, bos: int, ignored_messages: int, with_usage: bool) -> None:
        super().__init__(model, bos, ignored_messages, with_usage, "cmpl-")

    def whole(self, result: Generation, waited_ms: float) -> said.Body:
        choice = said.TextChoice(index=0, text=result.text, logprobs=None, finish_reason=said.finish(result))
        return said.TextCompletion(
            **self._head,
            object="text_completion",
            choices=[choice],
            usage=said.usage(result, self._bos),
            mindmerger=self._extension(result, waited_ms),
        )

    def _chunk(self, text: str, finish: said.Finish | None = None, **more: Any) -> said.TextCompletion:
        choice = said.TextChoice(index=0, text=text, logprobs=None, finish_reason=finish)
        return said.TextCompletion(**self._head, object="text_completion", choices=[choice], **self._null, **more)

    def first(self, started: Started | None) -> said.Body | None:
        return None if started is None else self._chunk("", **self._steering(started))

    def text(self, text: str) -> said.Body:
        return self._chunk(text)

    def last(self, result: Generation, waited_ms: float) -> said.Body:
        return self._chunk("", said.finish(result), mindmerger=self._extension(result, waited_ms))

    def usage(self, result: Generation) -> said.Body:
        usage = said.usage(result, self._bos)
        return said.TextCompletion(**self._head, object="text_completion", choices=[], usage=usage)


async def whole(ticket: Ticket, form: Form, receive: Receive) -> Response:
    """The answer in one piece; raises what the engine raised."""

    async def result() -> Generation:
        async for event in ticket.events():
            if isinstance(event, Generation):
                return event
        raise AssertionError("events end in a Generation or an error")

    try:
        found = await while_there(result(), receive)
    finally:
        ticket.cancel()
    return Json(form.whole(found, ticket.waited_ms).document())


class EventStream(Response):
    """The answer as it is generated. Made by `stream`, which has seen the first event: until then, errors have a status."""

    def __init__(self, ticket: Ticket, form: Form, first: Any, events: AsyncIterator[Any], with_usage: bool) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"})
        self._ticket, self._form, self._first, self._events = ticket, form, first, events
        self._with_usage = with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientGone):
                await while_there(self._send(send), receive)
        finally:
            self._ticket.cancel()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for body in self._bodies():
            data = b"data: " + (body if isinstance(body, bytes) else encode(body)) + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _bodies(self) -> AsyncIterator[bytes | dict[str, Any]]:
        form, first = self._form, self._first
        if opening := form.first(first if isinstance(first, Started) else None):
            yield opening.document()
        try:
            async for event in _chain(first, self._events):
                if isinstance(event, str):
                    yield form.text(event).document()
                elif isinstance(event, Generation):
                    yield form.last(event, self._ticket.waited_ms).document()
                    if self._with_usage:
                        yield form.usage(event).document()
        except Exception as error:
            # the status has been sent: the error is an event, and the stream ends without its mark
            yield from_error(error).document()
            return
        yield b"[DONE]"


async def stream(ticket: Ticket, form: Form, receive: Receive, with_usage: bool) -> Response:
    """Wait for the first event, and make the stream; raises what the engine raised until then."""
    events = ticket.events()
    try:
        first = await while_there(anext(events), receive)
    except BaseException:
        ticket.cancel()
        raise
    return EventStream(ticket, form, first, events, with_usage)


async def _chain(first: Any, events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    if not isinstance(first, Generation):
        async for event in events:
            yield event


async def while_there(work: Awaitable[T], receive: Receive) -> T:
    """The result of `work`; ClientGone, and `work` cancelled, when the connection closes first."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
