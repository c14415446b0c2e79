import base64

import httpx
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from openai import InternalServerError, OpenAI
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

    def test_where_an_expert_is_down_there_is_no_row_that_lacks_its_part(self, serve_url: ServeUrl) -> None:
        with serve_url(failing={1: ExpertUnavailable("down")}) as url:
            client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            with pytest.raises(InternalServerError) as caught:
                client.embeddings.create(model="mode", input=["a cat"])
        assert caught.value.status_code == 503
        assert caught.value.response.json()["error"]["code"] == "unavailable"
        assert int(caught.value.response.headers["Retry-After"]) >= 1
