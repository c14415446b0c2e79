"""`/v1/score` and `/v1/embed`: every form of a request and of an answer, and what is refused."""

from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from serving import EXPERTS, ServeUrl, as_json, picture

from mode_ray.serve.service.expert_client import ExpertUnavailable

TEXTS = ["a cat", "a bus"]
PNG = {"Content-Type": "image/png"}
DTYPES = {"float32": ("<f4", 1e-5), "float16": ("<f2", 1e-3)}


@pytest.fixture(scope="module")
def client(plain_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=plain_url, timeout=30) as client:
        yield client


def rows_of(answer: httpx.Response, kind: str) -> npt.NDArray[np.floating]:
    """The numbers of a binary answer, in the shape that its header names."""
    assert answer.headers["Content-Type"] == f"application/x-{kind}"
    shape = [int(length) for length in answer.headers["X-Shape"].split(",")]
    return np.frombuffer(answer.content, DTYPES[kind][0]).reshape(shape)


class TestScore:
    def test_json_multipart_and_raw_bodies_get_the_same_answer(
        self, client: httpx.Client, images: Sequence[bytes]
    ) -> None:
        fields: dict[str, Any] = {"texts": TEXTS, "each_text_routed": True}
        by_json = client.post("/v1/score", json={"images": as_json(images), **fields}).json()
        files = [("image", ("x", image)) for image in images]
        by_form = client.post("/v1/score", files=files, data=fields).json()
        by_list = client.post("/v1/score", files=files, data={**fields, "texts": '["a cat", "a bus"]'}).json()
        raw = [client.post("/v1/score", content=image, headers=PNG, params=fields).json() for image in images]
        assert by_form["texts"] == by_json["texts"] == raw[0]["texts"] == TEXTS
        for other in (by_form["scores"], by_list["scores"], [answer["scores"][0] for answer in raw]):
            np.testing.assert_allclose(other, by_json["scores"], atol=1e-5)

    @pytest.mark.parametrize("kind", DTYPES)
    def test_numbers_come_bare_where_the_accept_header_asks(self, client: httpx.Client, kind: str) -> None:
        body = {"images": as_json([picture(1), picture(2)]), "texts": [*TEXTS, "a pear"]}
        plain = client.post("/v1/score", json=body).json()
        answer = client.post("/v1/score", json=body, headers={"Accept": f"application/x-{kind}"})
        np.testing.assert_allclose(rows_of(answer, kind), plain["scores"], atol=DTYPES[kind][1])
        assert answer.headers["X-Task"] == plain["task"]

    def test_bare_numbers_that_lack_an_expert_are_marked(self, serve_url: ServeUrl) -> None:
        body = {"images": as_json([picture(1)]), "texts": TEXTS}
        with serve_url(failing={1: ExpertUnavailable("down")}) as url:
            answer = httpx.post(f"{url}/v1/score", json=body, headers={"Accept": "application/x-float32"}, timeout=30)
        assert (answer.headers["X-Degraded"], answer.headers["X-Left-Out"]) == ("true", "1")
        assert rows_of(answer, "float32").shape == (1, 2)


class TestAgreement:
    @pytest.mark.parametrize("pruning", [{"experts": 1}, {"experts": 2}, {"share": 0.6}, {"share": 1.0}])
    def test_inner_products_of_embeddings_are_the_scores_whatever_is_pruned(
        self, serve_url: ServeUrl, pruning: dict[str, float]
    ) -> None:
        body = {"images": as_json([picture(1), picture(2)]), "texts": ["a cat", "a bus", "an apple", "a tram"]}
        with serve_url(pruning=pruning) as url, httpx.Client(base_url=url, timeout=30) as client:
            for fields, own in (({"as_one_task": False}, True), ({"as_one_task": True}, False)):
                found = client.post("/v1/embed", json={**body, **fields}).json()
                products = np.array(found["images"]["concatenated"]) @ np.array(found["texts"]["concatenated"]).T
                scores = client.post("/v1/score", json={**body, "each_text_routed": own}).json()["scores"]
                np.testing.assert_allclose(products, scores, atol=1e-5)
            by_expert = client.post("/v1/embed", json={**body, "kind": "experts"}).json()["texts"]["experts"]
            assert len(by_expert) == EXPERTS


class TestTruncatedTexts:
    LONG = "a cat " * 20  # the context has 16 tokens

    def test_labels_that_the_experts_do_not_read_to_the_end_are_named(self, client: httpx.Client) -> None:
        body = {"images": as_json([picture(1)]), "labels": ["cat", self.LONG]}
        for path, answer in (
            ("classify", client.post("/v1/classify", json=body)),
            ("route", client.post("/v1/route", json={"labels": body["labels"]})),
            ("score", client.post("/v1/score", json={"images": body["images"], "texts": body["labels"]})),
            ("embed", client.post("/v1/embed", json={"texts": body["labels"]})),
        ):
            assert answer.json()["truncated"] == [self.LONG], path
            assert path == "route" or answer.headers["X-Truncated"] == "1"

    def test_a_template_may_make_them_too_long(self, client: httpx.Client) -> None:
        template = "a photo " * 6 + "{}"
        fields = {"labels": ["cat", "a red cat on a sofa"], "templates": ["{}", template]}
        assert client.post("/v1/route", json=fields).json()["truncated"] == ["a red cat on a sofa"]

    def test_clients_without_a_place_for_it_get_the_header(self, client: httpx.Client) -> None:
        image = as_json([picture(1)])[0]["base64"]
        parameters = {"candidate_labels": ["cat", self.LONG]}
        assert client.post("/", json={"inputs": image, "parameters": parameters}).headers["X-Truncated"] == "1"
        assert client.post("/v1/embeddings", json={"input": ["cat"]}).headers["X-Truncated"] == "0"


class TestEmbed:
    def test_json_multipart_and_raw_bodies_get_the_same_rows(
        self, client: httpx.Client, images: Sequence[bytes]
    ) -> None:
        by_json = client.post("/v1/embed", json={"images": as_json(images), "texts": TEXTS}).json()
        files = [("image", ("x", image)) for image in images]
        by_form = client.post("/v1/embed", files=files, data={"texts": TEXTS}).json()
        raw = [
            client.post("/v1/embed", content=image, headers=PNG, params={"texts": TEXTS}).json() for image in images
        ]
        rows = by_json["images"]["concatenated"]
        np.testing.assert_allclose(by_form["images"]["concatenated"], rows, atol=1e-5)
        np.testing.assert_allclose([answer["images"]["concatenated"][0] for answer in raw], rows, atol=1e-5)
        for other in (by_form, raw[0]):
            np.testing.assert_allclose(
                other["texts"]["concatenated"], by_json["texts"]["concatenated"], atol=1e-5, err_msg="texts beside"
            )

    def test_texts_need_no_image_in_a_form(self, client: httpx.Client) -> None:
        by_json = client.post("/v1/embed", json={"texts": TEXTS}).json()
        by_form = client.post("/v1/embed", files=[("texts", (None, text)) for text in TEXTS]).json()
        np.testing.assert_allclose(by_form["texts"]["concatenated"], by_json["texts"]["concatenated"], atol=1e-5)

    @pytest.mark.parametrize("kind", DTYPES)
    def test_numbers_come_bare_where_the_accept_header_asks(self, client: httpx.Client, kind: str) -> None:
        accept = {"Accept": f"application/x-{kind}"}
        for part, body in (("images", {"images": as_json([picture(1), picture(2)])}), ("texts", {"texts": TEXTS})):
            plain = client.post("/v1/embed", json=body).json()[part]
            answer = client.post("/v1/embed", json=body, headers=accept)
            np.testing.assert_allclose(rows_of(answer, kind), plain["concatenated"], atol=DTYPES[kind][1])
            assert rows_of(answer, kind).shape == (2, sum(plain["dimensions"].values()))
            assert (answer.headers["X-Degraded"], answer.headers["X-Left-Out"]) == ("false", "")

    @pytest.mark.parametrize("more", [{"images": as_json([picture(1)])}, {"kind": "experts"}])
    def test_bare_numbers_are_of_one_kind_of_rows(self, client: httpx.Client, more: dict[str, object]) -> None:
        answer = client.post("/v1/embed", json={"texts": TEXTS, **more}, headers={"Accept": "application/x-float32"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not_binary")

    def test_each_expert_by_itself(self, client: httpx.Client) -> None:
        answer = client.post("/v1/embed", json={"texts": TEXTS[:1], "kind": "experts"}).json()
        assert sorted(answer["texts"]["experts"]) == [str(expert) for expert in range(EXPERTS)]
        for rows in answer["texts"]["experts"].values():
            assert np.linalg.norm(rows[0]) == pytest.approx(1.0, abs=1e-5)

    def test_where_an_expert_is_down_an_image_gets_no_row_that_lacks_its_part(self, serve_url: ServeUrl) -> None:
        down = {1: ExpertUnavailable("down")}
        with serve_url(failing=down) as url, httpx.Client(base_url=url, timeout=30) as client:
            for accept in ("application/json", "application/x-float32"):
                answer = client.post("/v1/embed", json={"images": as_json([picture(1)])}, headers={"Accept": accept})
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (503, "unavailable")
                assert "[1]" in error["message"]
                assert int(answer.headers["Retry-After"]) >= 1


def test_the_product_of_embeddings_is_the_score_of_texts_routed_by_themselves(
    client: httpx.Client, images: Sequence[bytes]
) -> None:
    body = {"images": as_json(images), "texts": TEXTS}
    embedded = client.post("/v1/embed", json=body).json()
    scored = client.post("/v1/score", json={**body, "each_text_routed": True}).json()
    rows = np.array(embedded["images"]["concatenated"]) @ np.array(embedded["texts"]["concatenated"]).T
    np.testing.assert_allclose(rows, scored["scores"], atol=1e-5)
