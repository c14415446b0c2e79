"""Two interfaces of existing clients: zero-shot image classification of Hugging Face, embeddings of OpenAI.

`huggingface_hub.InferenceClient(model=URL).zero_shot_image_classification(...)` posts to the address itself, `/`.
`openai.OpenAI(base_url=URL + "/v1", api_key=TOKEN).embeddings.create(...)` asks for base64 of float32 by default.
"""

import base64
import time
from collections.abc import Callable

import numpy as np
from fastapi import APIRouter, Request, Response

from mode_ray.serve.http.answers import answer_headers
from mode_ray.serve.http.api_errors import name_fields
from mode_ray.serve.http.schema import (
    ANSWER_HEADERS,
    HuggingFaceLabel,
    HuggingFaceRequest,
    OpenAIEmbedding,
    OpenAIEmbeddingAnswer,
    OpenAIEmbeddingRequest,
    OpenAIModel,
    OpenAIModels,
)
from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.errors import ServiceError, unavailable
from mode_ray.serve.service.task_definition import TaskDefinition

MODEL_NAME = "mode"
# How these clients call the fields that the service names in its errors.
_HUGGING_FACE_NAMES = {
    "images": "inputs",
    "labels": "parameters.candidate_labels",
    "templates": "parameters.hypothesis_template",
}
_OPENAI_NAMES = {"texts": "input"}
# The default of transformers' pipeline.
_HYPOTHESIS_TEMPLATE = "This is a photo of {}."


def compatible_routes(get_service: Callable[[], EnsembleService]) -> APIRouter:
    """The routes; `get_service` is called for every request."""
    router = APIRouter(tags=["compatible"])
    model = OpenAIModel(id=MODEL_NAME, created=int(time.time()))

    @router.post(
        "/",
        summary="Zero-shot image classification as on Hugging Face",
        responses={200: {"headers": ANSWER_HEADERS}},
    )
    async def zero_shot_image_classification(
        wanted: HuggingFaceRequest, request: Request, response: Response
    ) -> list[HuggingFaceLabel]:
        """Labels with their probabilities, most likely first; headers say whether the answer is degraded."""
        name_fields(request, _HUGGING_FACE_NAMES)
        service = get_service()
        definition = TaskDefinition(
            labels=tuple(wanted.parameters.candidate_labels),
            templates=(wanted.parameters.hypothesis_template or _HYPOTHESIS_TEMPLATE,),
            rule=service.served.config.routing.rule,
        )
        found = await service.score([wanted.inputs], definition)
        response.headers.update(answer_headers(found))
        probabilities_l = found.probabilities_il[0]
        return [
            HuggingFaceLabel(label=definition.labels[place], score=float(probabilities_l[place]))
            for place in np.argsort(-probabilities_l, kind="stable")
        ]

    @router.post("/v1/embeddings", summary="Text embeddings as OpenAI's", responses={200: {"headers": ANSWER_HEADERS}})
    async def embeddings(
        wanted: OpenAIEmbeddingRequest, request: Request, response: Response
    ) -> OpenAIEmbeddingAnswer:
        """Queries for an index of the image embeddings of `/v1/embed`; each text is a task of its own."""
        name_fields(request, _OPENAI_NAMES)
        service = get_service()
        found = await service.embed_texts(wanted.input)
        width = found.concatenated.shape[1]
        if wanted.dimensions not in (None, width):
            raise ServiceError("bad_dimensions", f"the embeddings have {width} dimensions", field="dimensions")
        if found.left_out:
            raise unavailable("an expert does not answer; try again")
        response.headers.update(answer_headers(found))
        data = [
            OpenAIEmbedding(
                index=index,
                embedding=base64.b64encode(row_d.astype("<f4").tobytes()).decode()
                if wanted.encoding_format == "base64"
                else row_d.tolist(),
            )
            for index, row_d in enumerate(found.concatenated)
        ]
        words = sum(len(text.split()) for text in wanted.input)
        usage = {"prompt_tokens": words, "total_tokens": words}
        return OpenAIEmbeddingAnswer(data=data, model=wanted.model or MODEL_NAME, usage=usage)

    @router.get("/v1/models", summary="The ensemble in OpenAI's list of models")
    async def models() -> OpenAIModels:
        """One model, whatever the experts. Requests may give any name."""
        return OpenAIModels(data=[model])

    @router.get("/v1/models/{name}", summary="The ensemble as OpenAI's model")
    async def one_model(name: str) -> OpenAIModel:
        """The model, by its name in the list."""
        if name != MODEL_NAME:
            raise ServiceError("unknown_model", f"the only model is {MODEL_NAME}", 404, field="model")
        return model

    return router
