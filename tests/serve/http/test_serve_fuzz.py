"""Any request gets an answer or a refusal: no status of 500 or above except 503."""

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance
from serving import as_json

MUTATIONS = 500
# Per operation. 40 examples give about 60 answers with status 400 and 250 with 422, in 80 s on two busy cores.
EXAMPLES, DRILL_EXAMPLES = 15, 200
FIELDS: Mapping[str, Mapping[str, object]] = {
    "/v1/classify": {"labels": ["cat", "dog"], "top": 1},
    "/v1/score": {"texts": ["a cat", "a dog"], "each_text_routed": True},
    "/v1/embed": {"texts": ["a cat", "a dog"], "kind": "experts"},
}


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Some bytes changed, or cut off, or doubled."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 8)):
        changed[generator.randrange(len(changed))] = generator.randrange(256)
    start, end = sorted(generator.randrange(len(changed) + 1) for _ in range(2))
    kind = generator.randrange(4)
    if kind == 0:
        return bytes(changed[:end])
    if kind == 1:
        return bytes(changed[:start] + changed[end:])
    if kind == 2:
        return bytes(changed + changed[start:end])
    return bytes(changed)


def forms(url: str, path: str, image: bytes) -> dict[str, httpx.Request]:
    """A request in all the forms that it may have."""
    fields, address = FIELDS[path], url + path
    return {
        "JSON": httpx.Request("POST", address, json={"images": as_json([image]), **fields}),
        "raw": httpx.Request("POST", address, params=fields, content=image, headers={"Content-Type": "image/png"}),  # type: ignore[arg-type]
        "multipart": httpx.Request("POST", address, data=fields, files=[("image", ("x", image))]),
    }


class TestMutations:
    def test_bodies_of_every_form(self, plain_url: str, images: Sequence[bytes]) -> None:
        generator = random.Random(7)
        ways = itertools.cycle(itertools.product(FIELDS, forms(plain_url, "/v1/embed", images[0])))
        statuses: dict[tuple[str, str], Counter[int]] = {}
        with httpx.Client(timeout=30) as client:
            for way in itertools.islice(ways, MUTATIONS):
                path, form = way
                whole = forms(plain_url, path, generator.choice(images))[form]
                headers = {"Content-Type": whole.headers["Content-Type"]}
                answer = client.post(whole.url, content=mutated(whole.read(), generator), headers=headers)
                statuses.setdefault(way, Counter())[answer.status_code] += 1
                if answer.status_code != 200:
                    assert set(answer.json()) == {"error"}
        assert set().union(*statuses.values()) <= {200, 400, 422}, statuses
        assert all(found[400] + found[422] > found.total() / 10 for found in statuses.values()), statuses
        assert httpx.get(f"{plain_url}/v1/ready").json()["ready"]


def operations(url: str, mode: GenerationMode) -> list[schemathesis.APIOperation[Any, Any, Any, Any]]:
    """Those of the document; for what it does not allow, those that have a body or a query to be wrong."""
    found = [one.ok() for one in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]  # type: ignore[union-attr]
    return [one for one in found if mode.is_positive or one.body or one.query]


class TestSchema:
    @pytest.mark.parametrize("examples", [EXAMPLES, pytest.param(DRILL_EXAMPLES, marks=pytest.mark.drill)])
    @pytest.mark.parametrize("mode", GenerationMode)
    def test_what_the_openapi_document_allows_and_what_it_does_not(
        self, plain_url: str, mode: GenerationMode, examples: int
    ) -> None:
        statuses: Counter[int] = Counter()
        for operation in operations(plain_url, mode):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            def check(case: schemathesis.Case[Any]) -> None:
                response = case.call(base_url=plain_url, timeout=30)
                assert response.status_code < 500 or response.status_code == 503, response.text
                case.validate_response(response, checks=[response_schema_conformance])
                statuses[response.status_code] += 1

            check()
        wanted = {200} if mode.is_positive else {400, 422}
        assert wanted <= set(statuses), statuses
