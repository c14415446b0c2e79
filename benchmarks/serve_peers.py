"""The peers of `serve.py`, each a server of its own: `python serve_peers.py fastapi|litserve RUN PORT THREADS`.

Both serve the same models as is usual: the image as the request's body (LitServe: in base64 in JSON), the ranked
labels as JSON.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from serve_run import LABELS, PlainEnsemble

from mode_ray.serve.service.served_run import ServedRun
from mode_ray.storage import Location

_BATCH = 32
_BATCH_WAIT_SECONDS = 0.005


def ranked(scores_l: np.ndarray) -> dict[str, list[object]]:
    """One image's answer."""
    order = np.argsort(-scores_l)
    return {"labels": [LABELS[place] for place in order], "scores": scores_l[order].tolist()}


def serve_fastapi(served: ServedRun, port: int, threads: int) -> None:
    """Plain FastAPI: every request runs the models in a thread of a pool, as many as there are cores."""
    ensemble = PlainEnsemble(served, 1)
    pool = ThreadPoolExecutor(threads)
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, list[object]]:
        body = await request.body()
        scores_il = await asyncio.get_running_loop().run_in_executor(pool, ensemble.score, [body])
        return ranked(scores_il[0])

    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning")


def serve_litserve(served: ServedRun, port: int, threads: int) -> None:
    """LitServe with its dynamic batches."""
    import litserve  # of the side environment alone
    from litserve_peer import LitEnsemble

    api = LitEnsemble(served.run.uri, threads, _BATCH, _BATCH_WAIT_SECONDS)
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=port, log_level="warning", generate_client_file=False
    )


if __name__ == "__main__":
    peer, run, port_text, threads_text = sys.argv[1:]
    serve = {"fastapi": serve_fastapi, "litserve": serve_litserve}[peer]
    serve(ServedRun.load(Location.parse(run)), int(port_text), int(threads_text))
