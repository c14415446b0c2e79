from collections.abc import Iterator, Sequence

import httpx
import numpy as np
import pytest
from serving import EXPERTS, as_json, picture

LABELS = ["cat", "dog", "bus", "apple"]


@pytest.fixture(scope="module")
def client(plain_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=plain_url, timeout=30) as client:
        yield client


class TestClassify:
    def test_json_multipart_and_raw_bodies_get_the_same_answer(
        self, client: httpx.Client, images: Sequence[bytes]
    ) -> None:
        by_json = client.post("/v1/classify", json={"images": as_json(images), "labels": LABELS}).json()
        files = [("image", ("x", image)) for image in images]
        by_form = client.post("/v1/classify", files=files, data={"labels": LABELS}).json()
        by_list = client.post("/v1/classify", files=files, data={"labels": '["cat", "dog", "bus", "apple"]'}).json()
        raw = [
            client.post(
                "/v1/classify", content=image, headers={"Content-Type": "image/png"}, params={"labels": LABELS}
            ).json()
            for image in images
        ]
        assert by_form == by_list
        for number, result in enumerate(by_json["results"]):
            for other in (by_form["results"][number], raw[number]["results"][0]):
                assert other["labels"] == result["labels"]
                np.testing.assert_allclose(other["scores"], result["scores"], atol=1e-5)

    def test_labels_are_ranked_with_scores_probabilities_and_the_experts_share(
        self, client: httpx.Client, images: Sequence[bytes]
    ) -> None:
        body = {"images": as_json(images[:1]), "labels": LABELS, "experts": True}
        answer = client.post("/v1/classify", json=body).json()
        (result,) = answer["results"]
        assert sorted(result["labels"]) == sorted(LABELS)
        assert result["scores"] == sorted(result["scores"], reverse=True)
        assert sum(result["probabilities"]) == pytest.approx(1.0)
        mixed = sum(expert["weight"] * np.array(expert["scores"]) for expert in result["experts"])
        np.testing.assert_allclose(mixed, result["scores"], atol=1e-6)
        assert sum(weight["weight"] for weight in answer["routing"]["weights"]) == pytest.approx(1.0)
        assert [cluster["text"] for cluster in answer["routing"]["clusters"]] == LABELS
        assert (answer["degraded"], answer["left_out"]) == (False, [])

    def test_top_cuts_the_list_and_not_the_probabilities(self, client: httpx.Client) -> None:
        body = {"images": as_json([picture(1)]), "labels": LABELS}
        whole = client.post("/v1/classify", json=body).json()["results"][0]
        cut = client.post("/v1/classify", json={**body, "top": 2}).json()["results"][0]
        assert cut["labels"] == whole["labels"][:2]
        np.testing.assert_allclose(cut["probabilities"], whole["probabilities"][:2], rtol=1e-4)

    def test_numbers_come_bare_where_the_accept_header_asks(self, client: httpx.Client) -> None:
        body = {"images": as_json([picture(1), picture(2)]), "labels": LABELS}
        plain = client.post("/v1/classify", json=body).json()
        for kind, dtype, tolerance in (("float32", "<f4", 1e-5), ("float16", "<f2", 1e-3)):
            answer = client.post("/v1/classify", json=body, headers={"Accept": f"application/x-{kind}"})
            shape = [int(length) for length in answer.headers["X-Shape"].split(",")]
            scores = np.frombuffer(answer.content, dtype).reshape(shape)
            assert shape == [2, len(LABELS)]
            assert answer.headers["X-Task"] == plain["task"]
            for row, result in zip(scores, plain["results"], strict=True):
                np.testing.assert_allclose(np.sort(row)[::-1], result["scores"], atol=tolerance)


class TestTasks:
    def test_a_registered_task_stands_for_its_labels(self, client: httpx.Client) -> None:
        task = client.post("/v1/tasks", json={"labels": LABELS, "templates": ["one {}"]}).json()
        assert client.get(f"/v1/tasks/{task['task']}").json() == task
        body = {"images": as_json([picture(1)])}
        by_id = client.post("/v1/classify", json={**body, "task": task["task"]}).json()
        inline = client.post("/v1/classify", json={**body, "labels": LABELS, "templates": ["one {}"]}).json()
        assert by_id["results"][0]["labels"] == inline["results"][0]["labels"]
        assert by_id["task"] == inline["task"] == task["task"]

    def test_an_unknown_id_is_not_found(self, client: httpx.Client) -> None:
        answer = client.get(f"/v1/tasks/{'0' * 32}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_task")

    def test_route_tells_the_weights_without_keeping_anything(self, client: httpx.Client) -> None:
        answer = client.post("/v1/route", json={"texts": ["a cat", "a dog"]}).json()
        weights = [weight["weight"] for weight in answer["routing"]["weights"]]
        assert int(np.argmax(weights)) == 0
        assert len(weights) == EXPERTS


class TestState:
    def test_experts_clusters_health_and_readiness(self, client: httpx.Client) -> None:
        experts = client.get("/v1/experts").json()["experts"]
        assert [(expert["id"], expert["available"], expert["clusters"]) for expert in experts] == [
            (number, True, 3) for number in range(EXPERTS)
        ]
        clusters = client.get("/v1/clusters", params={"offset": 7, "limit": 5}).json()
        assert (clusters["total"], [cluster["fine"] for cluster in clusters["clusters"]]) == (9, [7, 8])
        assert client.get("/v1/health").json() == {"status": "ok"}
        assert client.get("/v1/ready").json() == {"ready": True, "experts": {"0": True, "1": True, "2": True}}

    def test_the_openapi_document_has_an_example_for_every_body(self, client: httpx.Client) -> None:
        document = client.get("/openapi.json").json()
        for path, methods in document["paths"].items():
            for name, operation in methods.items():
                if name != "post":
                    continue
                content = operation["requestBody"]["content"]["application/json"]
                model = document["components"]["schemas"][content["schema"]["$ref"].rsplit("/", 1)[1]]
                answer = client.post(path, json=model["examples"][0])
                assert answer.status_code == 200, (path, answer.text)
