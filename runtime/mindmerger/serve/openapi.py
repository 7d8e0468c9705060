"""The description of the service at /openapi.json (OpenAPI 3.1), made from the classes of `requests` and `responses`.

Knows nothing about how the operations do what they do.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mindmerger.serve import requests as asked
from mindmerger.serve import responses as said

_REF = "#/components/schemas/{model}"
_ERRORS = {
    "400": "A parameter or the question cannot be used.",
    "401": "The API key is missing or wrong.",
    "403": "A foreign Host or Origin.",
    "404": "The model is not served here.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is not sent as JSON.",
    "429": "Too many questions are waiting.",
    "500": "The service failed.",
    "503": "The service is stopping.",
}
_ALWAYS = ("401", "403", "500")
_OF_BODIES = ("400", "404", "408", "413", "415", "429", "503")
_BODIES: tuple[type[BaseModel], ...] = (asked.ChatRequest, asked.CompletionRequest, asked.ExplainRequest)
_ANSWERS: tuple[type[BaseModel], ...] = (
    said.ChatCompletion,
    said.ChatChunk,
    said.TextCompletion,
    said.Explained,
    said.ModelList,
    said.ModelCard,
    said.Health,
    said.ErrorAnswer,
)


def describe(model: str, version: str, *, key: bool) -> dict[str, Any]:
    """The document for a service of `model`; `key`: whether it asks for an API key."""
    _, schemas = models_json_schema(
        [*((body, "validation") for body in _BODIES), *((answer, "serialization") for answer in _ANSWERS)],
        ref_template=_REF,
    )
    definitions = schemas["$defs"]
    for body in _BODIES:
        _name_model(definitions[body.__name__]["properties"]["model"], model)
    components: dict[str, Any] = {"schemas": definitions}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "MindMerger Edge",
            "version": version,
            "description": "OpenAI's API over a merged model; beyond it, the field `mindmerger`.",
        },
        "paths": _paths(),
        "components": components,
    }
    if key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _name_model(schema: dict[str, Any], model: str) -> None:
    for one in schema.get("anyOf", [schema]):
        if one.get("type") == "string":
            one.pop("maxLength", None)
            one["enum"] = [model]


def _paths() -> dict[str, Any]:
    listed = _get("List the models: there is one.", said.ModelList)
    card = _get("The model by its name.", said.ModelCard, "404")
    card["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    metrics = _operation("Counters for Prometheus.", {"text/plain": {"schema": {"type": "string"}}}, ())
    return {
        "/v1/models": {"get": listed},
        "/v1/models/{model}": {"get": card},
        "/v1/chat/completions": {
            "post": _post("Answer the last message.", asked.ChatRequest, said.ChatCompletion, said.ChatChunk)
        },
        "/v1/completions": {
            "post": _post("Answer the prompt.", asked.CompletionRequest, said.TextCompletion, said.TextCompletion)
        },
        "/v1/explain": {"post": _post("What the gate says of a question.", asked.ExplainRequest, said.Explained)},
        "/health": {"get": _get("Whether the service answers.", said.Health, "503")},
        "/metrics": {"get": metrics},
    }


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=model.__name__)}}


def _get(summary: str, answer: type[BaseModel], *errors: str) -> dict[str, Any]:
    operation = _operation(summary, {"application/json": _ref(answer)}, errors)
    if answer is said.Health:
        operation["responses"]["503"]["content"] = {"application/json": _ref(answer)}
        operation["security"] = []
    return operation


def _post(
    summary: str, body: type[BaseModel], answer: type[BaseModel], chunk: type[BaseModel] | None = None
) -> dict[str, Any]:
    content = {"application/json": _ref(answer)}
    if chunk is not None:
        # of each event
        said_in_it = {"anyOf": [_ref(chunk)["schema"], _ref(said.ErrorAnswer)["schema"]]}
        data = {"anyOf": [{"const": "[DONE]"}, {"contentMediaType": "application/json", "contentSchema": said_in_it}]}
        event = {"type": "object", "properties": {"data": {"type": "string", **data}}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    operation = _operation(summary, content, _OF_BODIES)
    operation["requestBody"] = {"required": True, "content": {"application/json": _ref(body)}}
    return operation


def _operation(summary: str, content: dict[str, Any], errors: tuple[str, ...]) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "As asked.", "content": content}}
    for status in sorted({*_ALWAYS, *errors}):
        responses[status] = {
            "description": _ERRORS[status],
            "content": {"application/json": _ref(said.ErrorAnswer)},
        }
        if status in ("429", "503"):
            responses[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return {"summary": summary, "responses": responses}
