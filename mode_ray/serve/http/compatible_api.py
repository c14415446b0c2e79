"""Two interfaces of existing clients: zero-shot image classification of Hugging Face, embeddings of OpenAI.

`huggingface_hub.InferenceClient(model=URL).zero_shot_image_classification(...)` posts to the address itself, `/`.
`openai.OpenAI(base_url=URL + "/v1", api_key=TOKEN).embeddings.create(...)` asks for base64 of float32 by default.
"""

import base64
from collections.abc import Callable

import numpy as np
from fastapi import APIRouter, Response

from mode_ray.serve.http.answers import answer_headers
from mode_ray.serve.http.schema import (
    ANSWER_HEADERS,
    HuggingFaceLabel,
    HuggingFaceRequest,
    OpenAIEmbedding,
    OpenAIEmbeddingAnswer,
    OpenAIEmbeddingRequest,
)
from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.errors import ServiceError, over_limit, unavailable
from mode_ray.serve.service.task_definition import TaskDefinition

# The default of transformers' pipeline.
_HYPOTHESIS_TEMPLATE = "This is a photo of {}."


def compatible_routes(get_service: Callable[[], EnsembleService]) -> APIRouter:
    """The routes; `get_service` is called for every request."""
    router = APIRouter(tags=["compatible"])

    @router.post(
        "/",
        summary="Zero-shot image classification as on Hugging Face",
        responses={200: {"headers": ANSWER_HEADERS}},
    )
    async def zero_shot_image_classification(
        request: HuggingFaceRequest, response: Response
    ) -> list[HuggingFaceLabel]:
        """Labels with their probabilities, most likely first; headers say whether the answer is degraded."""
        service = get_service()
        definition = TaskDefinition(
            labels=tuple(request.parameters.candidate_labels),
            templates=(request.parameters.hypothesis_template or _HYPOTHESIS_TEMPLATE,),
            rule=service.served.config.routing.rule,
        )
        found = await service.score([request.inputs], definition)
        response.headers.update(answer_headers(found.left_out, found.task))
        probabilities_l = found.probabilities_il[0]
        return [
            HuggingFaceLabel(label=definition.labels[place], score=float(probabilities_l[place]))
            for place in np.argsort(-probabilities_l, kind="stable")
        ]

    @router.post("/v1/embeddings", summary="Text embeddings as OpenAI's")
    async def embeddings(request: OpenAIEmbeddingRequest) -> OpenAIEmbeddingAnswer:
        """Queries for an index of the image embeddings of `/v1/embed`; each text is a task of its own."""
        service = get_service()
        limit = service.config.limits.texts
        texts = [request.input] if isinstance(request.input, str) else request.input
        if len(texts) > limit:
            raise over_limit("inputs", len(texts), limit, "input", "texts")
        found = await service.embed_texts(texts)
        width = found.concatenated.shape[1]
        if request.dimensions not in (None, width):
            raise ServiceError("bad_dimensions", f"the embeddings have {width} dimensions", field="dimensions")
        if found.left_out:
            raise unavailable("an expert does not answer; try again")
        data = [
            OpenAIEmbedding(
                index=index,
                embedding=base64.b64encode(row_d.astype("<f4").tobytes()).decode()
                if request.encoding_format == "base64"
                else row_d.tolist(),
            )
            for index, row_d in enumerate(found.concatenated)
        ]
        words = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": words, "total_tokens": words}
        return OpenAIEmbeddingAnswer(data=data, model=request.model, usage=usage)

    return router
