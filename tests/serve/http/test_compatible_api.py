import base64

import httpx
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from openai import InternalServerError, NotFoundError, OpenAI
from serving import ServeUrl, picture

from mode_ray.serve.service.expert_client import ExpertUnavailable

LABELS = ["cat", "dog", "bus"]


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # it would refuse the loopback too


class TestHuggingFace:
    def test_its_client_gets_sorted_probabilities_and_its_template_counts(self, plain_url: str) -> None:
        client = InferenceClient(model=plain_url)
        plain = client.zero_shot_image_classification(picture(1), LABELS)
        other = client.zero_shot_image_classification(picture(1), LABELS, hypothesis_template="no {} at all")
        scores = [element.score for element in plain]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1.0)
        assert sorted(element.label for element in plain) == sorted(LABELS)
        assert {element.label: element.score for element in other} != {
            element.label: element.score for element in plain
        }

    @pytest.mark.parametrize(("down", "marks"), [((), ("false", "")), ((0, 2), ("true", "0,2"))])
    def test_the_headers_tell_what_its_client_has_no_place_for(
        self, serve_url: ServeUrl, down: tuple[int, ...], marks: tuple[str, str]
    ) -> None:
        image = base64.b64encode(picture(1)).decode()
        parameters = {"candidate_labels": LABELS, "hypothesis_template": "one {}"}
        own_body = {"images": [{"base64": image}], "labels": LABELS, "templates": ["one {}"]}
        with serve_url(failing=dict.fromkeys(down, ExpertUnavailable("down"))) as url:
            answer = httpx.post(url, json={"inputs": image, "parameters": parameters})
            own = httpx.post(f"{url}/v1/classify", json=own_body)
            by_client = InferenceClient(model=url).zero_shot_image_classification(
                picture(1), LABELS, hypothesis_template="one {}"
            )
        for said in (answer.headers, own.headers):
            assert (said["X-Degraded"], said["X-Left-Out"], said["X-Task"]) == (*marks, own.json()["task"])
        (result,) = own.json()["results"]
        assert [element.label for element in by_client] == result["labels"]
        np.testing.assert_allclose([entry["score"] for entry in answer.json()], result["probabilities"], rtol=1e-4)

    def test_errors_name_its_fields(self, plain_url: str) -> None:
        image = base64.b64encode(picture(1)).decode()
        for inputs, parameters, field in (
            ("https://example.org/cat.jpg", {"candidate_labels": LABELS}, "inputs"),
            (base64.b64encode(b"no image").decode(), {"candidate_labels": LABELS}, "inputs"),
            (image, {"candidate_labels": []}, "parameters.candidate_labels"),
            (image, {"candidate_labels": LABELS, "hypothesis_template": "a"}, "parameters.hypothesis_template"),
        ):
            answer = httpx.post(plain_url, json={"inputs": inputs, "parameters": parameters})
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


class TestLangChain:
    def test_its_client_gets_the_rows_with_its_setting(self, plain_url: str) -> None:
        langchain_openai = pytest.importorskip("langchain_openai")
        fields = {
            "base_url": f"{plain_url}/v1",
            "api_key": "none",  # pragma: allowlist secret
            "check_embedding_ctx_length": False,
        }
        texts = [f"thing number {number}" for number in range(1500)]  # it sends a thousand at a time
        found = langchain_openai.OpenAIEmbeddings(**fields).embed_documents(texts)
        own = httpx.post(f"{plain_url}/v1/embed", json={"texts": texts[-2:]}).json()["texts"]["concatenated"]
        assert len(found) == len(texts)
        np.testing.assert_allclose(found[-2:], own, atol=1e-5)


class TestOpenAI:
    def test_its_client_gets_the_same_rows_as_base64_and_as_floats(self, plain_url: str) -> None:
        texts = ["a cat", "a red bus"]
        client = OpenAI(base_url=f"{plain_url}/v1", api_key="none", max_retries=0)
        by_default = client.embeddings.create(model="mode", input=texts)
        as_floats = client.embeddings.create(model="mode", input=texts, encoding_format="float")
        single = client.embeddings.create(model="mode", input=texts[0])
        own = httpx.post(f"{plain_url}/v1/embed", json={"texts": texts}).json()["texts"]["concatenated"]
        rows = [np.array(entry.embedding) for entry in by_default.data]
        np.testing.assert_allclose(rows, [entry.embedding for entry in as_floats.data], atol=1e-6)
        np.testing.assert_allclose(rows, own, atol=1e-5)
        np.testing.assert_allclose(single.data[0].embedding, rows[0], atol=1e-5)
        assert [entry.index for entry in by_default.data] == [0, 1]

    def test_its_largest_batch_succeeds(self, plain_url: str) -> None:
        texts = [f"thing number {number}" for number in range(2048)]
        client = OpenAI(base_url=f"{plain_url}/v1", api_key="none", max_retries=0)
        found = client.embeddings.create(model="mode", input=texts).data
        assert [entry.index for entry in found] == list(range(2048))
        single = client.embeddings.create(model="mode", input=texts[2047]).data[0]
        np.testing.assert_allclose(found[2047].embedding, single.embedding, atol=1e-5)

    def test_its_client_lists_the_model(self, plain_url: str) -> None:
        client = OpenAI(base_url=f"{plain_url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["mode"]
        assert client.models.retrieve("mode").owned_by == "mode_ray"
        with pytest.raises(NotFoundError, match="the only model is mode"):
            client.models.retrieve("other")

    @pytest.mark.parametrize("fields", [{"encoding_format": None}, {"model": None}, {"dimensions": None}, {}])
    def test_fields_may_be_null_or_missing(self, plain_url: str, fields: dict[str, None]) -> None:
        answer = httpx.post(f"{plain_url}/v1/embeddings", json={"model": "mode", "input": "a cat", **fields})
        assert answer.status_code == 200, answer.text
        assert (answer.json()["model"], len(answer.json()["data"])) == ("mode", 1)

    @pytest.mark.parametrize("tokens", [[15339, 1917], [[15339, 1917], [9]]])
    def test_token_ids_are_refused_with_the_setting_of_langchain(self, plain_url: str, tokens: list[object]) -> None:
        answer = httpx.post(f"{plain_url}/v1/embeddings", json={"model": "mode", "input": tokens})
        error = answer.json()["error"]
        assert (answer.status_code, error["field"]) == (422, "input")
        assert "check_embedding_ctx_length=False" in error["message"]

    @pytest.mark.parametrize(("given", "field"), [([], "input"), (["a", " "], "input"), ([None], "input.0")])
    def test_errors_name_its_field(self, plain_url: str, given: list[object], field: str) -> None:
        error = httpx.post(f"{plain_url}/v1/embeddings", json={"model": "mode", "input": given}).json()["error"]
        assert error["field"] == field

    def test_where_an_expert_is_down_there_is_no_row_that_lacks_its_part(self, serve_url: ServeUrl) -> None:
        with serve_url(failing={1: ExpertUnavailable("down")}) as url:
            client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            with pytest.raises(InternalServerError) as caught:
                client.embeddings.create(model="mode", input=["a cat"])
        assert caught.value.status_code == 503
        assert caught.value.response.json()["error"]["code"] == "unavailable"
        assert int(caught.value.response.headers["Retry-After"]) >= 1
