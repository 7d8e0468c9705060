"""The service as an ASGI application: its addresses, and what each of them does.

Knows how a request becomes a ticket and a ticket an answer; what happens in between is the engine's, what it looks like
`responses`'.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import mindmerger
from mindmerger.errors import MindMergerError
from mindmerger.serve import answers, bodies, failures, page
from mindmerger.serve import requests as asked
from mindmerger.serve import responses as said
from mindmerger.serve.engine import Engine
from mindmerger.serve.failures import ApiError, Json
from mindmerger.serve.guard import Guard, Rules
from mindmerger.serve.metrics import CONTENT_TYPE, Counted, Metrics
from mindmerger.serve.openapi import describe
from mindmerger.serve.tickets import Busy

_API = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/explain", "/health", "/metrics", "/openapi.json")
OPEN_PATHS = frozenset({"/health", *page.PATHS})
"""What needs no API key: whether the service runs, and the page's files, which are the same everywhere."""


class Service:
    """The addresses of one engine."""

    def __init__(self, engine: Engine, rules: Rules) -> None:
        self._engine = engine
        self._model = manifest = engine.model.manifest
        self._bos = int(manifest.prompt.bos_id is not None)
        self._began = int(time.time())
        self._metrics = Metrics(engine.state)
        engine.watch = self._metrics.answered
        self._description = describe(manifest.name, mindmerger.__version__, key=rules.key is not None)
        self._rules = rules

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._one_model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completion, methods=["POST"]),
            Route("/v1/explain", self._explain, methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._show_metrics),
            Route("/openapi.json", self._describe),
            *page.routes(),
        ]
        middleware = [
            Middleware(Counted, metrics=self._metrics, paths=frozenset({*_API, *page.PATHS})),
            Middleware(Guard, rules=self._rules),
        ]
        if self._rules.origins:
            middleware.insert(
                1,
                Middleware(
                    CORSMiddleware,
                    allow_origins=sorted(self._rules.origins),
                    allow_methods=["GET", "POST"],
                    allow_headers=["authorization", "content-type"],
                ),
            )
        handlers: dict[Any, Any] = {
            ApiError: _api_error,
            MindMergerError: _api_error,
            Busy: _api_error,
            answers.ClientGone: _gone,
            HTTPException: _http_error,
            Exception: _api_error,
        }
        app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
        app.router.redirect_slashes = False
        return app

    # ----------------------------------------------------------------------------------------------- asking

    async def _chat(self, request: Request) -> Response:
        body = await bodies.read(request, asked.ChatRequest)
        form = answers.ChatForm(self._model.name, self._bos, body.ignored_messages, body.with_usage)
        return await self._answer(request, body, form)

    async def _completion(self, request: Request) -> Response:
        body = await bodies.read(request, asked.CompletionRequest)
        form = answers.CompletionForm(self._model.name, self._bos, body.ignored_messages, body.with_usage)
        return await self._answer(request, body, form)

    async def _answer(
        self, request: Request, body: asked.ChatRequest | asked.CompletionRequest, form: answers.Form
    ) -> Response:
        self._check_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options needs stream: leave it out, or stream", param="stream_options")
        ticket = await self._engine.submit(body.question(), body.options(), listens=bool(body.stream))
        if body.stream:
            return await answers.stream(ticket, form, request.receive, body.with_usage)
        return await answers.whole(ticket, form, request.receive)

    async def _explain(self, request: Request) -> Response:
        body = await bodies.read(request, asked.ExplainRequest)
        if body.model is not None:
            self._check_model(body.model)
        found = await self._engine.explain(body.question, body.language)
        answer = said.Explained(object="explanation", model=self._model.name, **vars(found))
        return Json(answer.document())

    def _check_model(self, name: str) -> None:
        if name != self._model.name:
            raise failures.unknown_model(name, self._model.name)

    # ------------------------------------------------------------------------------------- about the service

    def _card(self) -> said.ModelCard:
        manifest = self._model
        return said.ModelCard(
            id=manifest.name,
            object="model",
            created=self._began,
            owned_by="mindmerger",
            mindmerger=said.About(
                method=manifest.method,
                languages=list(manifest.languages),
                gate=manifest.gate is not None,
                filter_threshold=manifest.filter_threshold,
                context=self._engine.model.llm.context,
                max_new_tokens=manifest.generation.max_new_tokens,
                encoder=manifest.encoder.name,
                llm=manifest.llm.name,
            ),
        )

    async def _models(self, _request: Request) -> Response:
        return Json(said.ModelList(object="list", data=[self._card()]).document())

    async def _one_model(self, request: Request) -> Response:
        self._check_model(request.path_params["model"])
        return Json(self._card().document())

    async def _health(self, _request: Request) -> Response:
        state = self._engine.state()
        health = said.Health(
            status="stopping" if state.stopping else "ok",
            model=self._model.name,
            slots=state.slots,
            busy=state.busy,
            waiting=state.waiting,
        )
        return Json(health.document(), status_code=503 if state.stopping else 200)

    async def _show_metrics(self, _request: Request) -> Response:
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _describe(self, _request: Request) -> Response:
        return Json(self._description)


async def _api_error(_request: Request, error: Exception) -> Response:
    return failures.from_error(error).response()


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=answers.GONE)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return failures.not_found(request.url.path).response()
    if error.status_code == 405:
        message = f"{request.method[:20]} is not for {request.url.path[:200]!r}"
        return ApiError(405, message, headers=dict(error.headers or {})).response()
    return ApiError(error.status_code, error.detail, headers=dict(error.headers or {})).response()
