"""The description at /openapi.json is what the service does: schemathesis asks all it may be asked, and worse.

Few examples each time; MINDMERGER_SCHEMATHESIS=1000 asks for as many of each operation.
"""

from __future__ import annotations

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.conftest import Served

EXAMPLES = int(os.environ.get("MINDMERGER_SCHEMATHESIS", "12"))
OPERATIONS = {
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/explain",
    "GET /health",
    "GET /metrics",
}
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
)


def test_all_operations_are_described(served: Served) -> None:
    description = served.ask("/openapi.json").json
    found = {f"{method.upper()} {path}" for path, methods in description["paths"].items() for method in methods}
    assert found == OPERATIONS
    assert "security" not in description  # this one asks for no key


def _ending_in_a_question(case: schemathesis.Case) -> schemathesis.Case:
    """JSON Schema cannot say that the last message is the user's; without this, hardly one would be answered."""
    if isinstance(case.body, dict) and len(case.body.get("messages", [])) % 2:
        case.body["messages"].append({"role": "user", "content": "hola"})
    return case


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_the_service_does_what_it_says(served: Served, operation: str) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    method, path = operation.split(" ")
    described = schema[path][method]
    cases = described.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if path.endswith("chat/completions"):
        cases = cases.map(_ending_in_a_question)
    if method == "POST":
        cases |= described.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @given(case=cases)
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def each(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=served.url, checks=list(CHECKS), timeout=60)

    each()
    assert served.process.poll() is None
