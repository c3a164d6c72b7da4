"""Requests that schemathesis invents from the OpenAPI page: no answer is a fault, each is as the page describes it."""

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from hf_genrec import Recommender
from hf_genrec.serving.server.app import create_app
from hf_genrec.serving.server.settings import ServerSettings
from saved_folders import make_folder


def no_fault(context, response, case):
    """503 and 504 are answers; 500 is a fault."""
    assert response.status_code != 500, response.text


EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))


ROUTES = [
    "GET /health", "GET /ready", "GET /metrics", "GET /info", "POST /recommend", "POST /similar_items",
    "POST /item_vectors", "POST /encode_users", "POST /explain", "GET /catalog/status", "POST /catalog/add",
    "POST /catalog/remove", "POST /catalog/rollback",
]  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    import schemathesis  # here: seconds, for one of the processes that run the tests

    recommender = Recommender.from_pretrained(make_folder(tmp_path_factory.mktemp("server") / "run"), device="cpu")
    app = create_app(recommender, ServerSettings(max_top_k=20))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_route_is_tried(page):
    assert [found.ok().label for found in page.get_all_operations()] == ROUTES


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_invented_requests_find_no_fault(page, route, mode):
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi import checks

    conforms = [checks.content_type_conformance, checks.response_schema_conformance, checks.status_code_conformance]
    (operation,) = (found.ok() for found in page.get_all_operations() if found.ok().label == route)

    @settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
    def ask(case):
        case.call_and_validate(base_url="http://127.0.0.1:8000", checks=[no_fault, *conforms])

    try:
        ask()
    except Unsatisfiable:
        pytest.skip("nothing can be wrong in a request without fields")
