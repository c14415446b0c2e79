"""Whatever comes in, the answer is an answer or a refusal: no status of 500 and above but 503."""

import base64
import json
import random
from collections.abc import Iterator, Sequence

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import response_schema_conformance
from serving import ServeUrl

MUTATIONS = 500
EXAMPLES = 40


@pytest.fixture
def url(serve_url: ServeUrl) -> Iterator[str]:
    with serve_url() as url:
        yield url


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


class TestMutations:
    def test_images_and_bodies(self, url: str, images: Sequence[bytes]) -> None:
        generator = random.Random(7)
        whole = json.dumps(
            {"images": [{"base64": base64.b64encode(images[0]).decode()}], "labels": ["cat", "dog"], "top": 1}
        ).encode()
        statuses: dict[int, int] = {}
        with httpx.Client(base_url=url, timeout=30) as client:
            for number in range(MUTATIONS):
                if number % 3:
                    content, kind = mutated(generator.choice(images), generator), "image/png"
                else:
                    content, kind = mutated(whole, generator), "application/json"
                answer = client.post(
                    "/v1/classify", params={"labels": ["cat"]}, content=content, headers={"Content-Type": kind}
                )
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                if answer.status_code != 200:
                    assert set(answer.json()) == {"error"}
        assert set(statuses) <= {200, 400, 422}, statuses
        assert statuses[422] > MUTATIONS / 10
        assert httpx.get(f"{url}/v1/ready").json()["ready"]


class TestSchema:
    def test_what_the_openapi_document_allows(self, url: str) -> None:
        document = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for found in document.get_all_operations():
            operation = found.ok()

            @given(case=operation.as_strategy())
            @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            def check(case: schemathesis.Case) -> None:
                response = case.call(base_url=url, timeout=30)
                assert response.status_code < 500 or response.status_code == 503, response.text
                case.validate_response(response, checks=[response_schema_conformance])

            check()
