"""The LitServe peer's model, where its worker processes can import it. LitServe is none of our dependencies."""

import base64

import litserve
import numpy as np
from serve_run import PlainEnsemble

from mode_ray.serve.service.served_run import ServedRun
from mode_ray.storage import Location


class LitEnsemble(litserve.LitAPI):  # type: ignore[misc]
    """The ensemble as LitServe has it: images of several requests in a batch.

    Args:
        run: URI of the served run.
        threads: Of torch.
        max_batch_size: Images of a batch.
        batch_wait_seconds: How long a batch waits for more.
    """

    def __init__(self, run: str, threads: int, max_batch_size: int, batch_wait_seconds: float) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_wait_seconds)
        self._run = run
        self._threads = threads

    def setup(self, device: str) -> None:
        """Load the models, in the worker."""
        if device != "cpu":
            raise ValueError(f"expected the CPU, got {device}")
        self._ensemble = PlainEnsemble(ServedRun.load(Location.parse(self._run)), self._threads)

    def decode_request(self, request: dict[str, str]) -> bytes:
        """The image, in base64 in JSON."""
        return base64.b64decode(request["image"], validate=True)

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Encoded images of any size: nothing to stack."""
        return inputs

    def predict(self, images: bytes | list[bytes]) -> list[np.ndarray]:
        """Scores of every image."""
        return list(self._ensemble.score(images if isinstance(images, list) else [images]))

    def unbatch(self, output: list[np.ndarray]) -> list[np.ndarray]:
        """One row a request."""
        return output

    def encode_response(self, output: np.ndarray) -> dict[str, list[object]]:
        """Ranked labels, as the other peer gives them."""
        from serve_peers import ranked

        return ranked(output)
