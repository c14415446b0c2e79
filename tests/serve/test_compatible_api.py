import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from openai import OpenAI
from serving import ServeUrl, picture

LABELS = ["cat", "dog", "bus"]


class TestHuggingFace:
    def test_its_client_gets_sorted_probabilities_and_its_template_counts(
        self, serve_url: ServeUrl, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # it would refuse the loopback too
        with serve_url() as url:
            client = InferenceClient(model=url)
            plain = client.zero_shot_image_classification(picture(1), LABELS)
            other = client.zero_shot_image_classification(picture(1), LABELS, hypothesis_template="no {} at all")
        scores = [element.score for element in plain]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1.0)
        assert sorted(element.label for element in plain) == sorted(LABELS)
        assert {element.label: element.score for element in other} != {
            element.label: element.score for element in plain
        }


class TestOpenAI:
    def test_its_client_gets_the_same_rows_as_base64_and_as_floats(self, serve_url: ServeUrl) -> None:
        import httpx

        texts = ["a cat", "a red bus"]
        with serve_url() as url:
            client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            by_default = client.embeddings.create(model="mode", input=texts)
            as_floats = client.embeddings.create(model="mode", input=texts, encoding_format="float")
            single = client.embeddings.create(model="mode", input=texts[0])
            own = httpx.post(f"{url}/v1/embed", json={"texts": texts}).json()["texts"]["concatenated"]
        rows = [np.array(entry.embedding) for entry in by_default.data]
        np.testing.assert_allclose(rows, [entry.embedding for entry in as_floats.data], atol=1e-6)
        np.testing.assert_allclose(rows, own, atol=1e-5)
        np.testing.assert_allclose(single.data[0].embedding, rows[0], atol=1e-5)
        assert [entry.index for entry in by_default.data] == [0, 1]
