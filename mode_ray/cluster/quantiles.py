"""How far the captions of a fit were from their centers, as the clustering stores it."""

import numpy as np

from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import DataError

QUANTILES_KEY = "squared_distance_quantiles"


def training_quantiles(clustering: Clustering) -> dict[float, float]:
    """Quantiles of the squared distance in the fitted sample, by share.

    Raises:
        DataError: The clustering does not have them.
    """
    stored = clustering.training.get(QUANTILES_KEY)
    try:
        quantiles = {float(share): float(value) for share, value in stored.items()} if stored else {}
    except (AttributeError, TypeError, ValueError):
        quantiles = {}
    if not quantiles or not np.isfinite(list(quantiles.values())).all():
        raise DataError(
            f"the clustering has no {QUANTILES_KEY} of its sample: run the cluster stage again with this version of "
            "mode-ray"
        )
    return dict(sorted(quantiles.items()))
