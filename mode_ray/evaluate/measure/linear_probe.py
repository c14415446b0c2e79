"""Linear probe: multinomial logistic regression on frozen embeddings, with the penalty chosen on held-out images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.errors import DataError
from mode_ray.util.devices import pick_device

PENALTIES = tuple(10.0**exponent for exponent in range(1, -7, -1))
_HELD_OUT_SHARE = 0.2
_LOGITS_AT_ONCE = 1 << 24
_STEPS = 200
_GRADIENT_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted linear classifier.

    Attributes:
        weights_dl: One column per class, float32.
        bias_l: One number per class, float32.
        penalty: The chosen weight of the squared norm in the loss.
        held_out_accuracy: Accuracy on the held-out images of the fit without them, at that penalty.
    """

    weights_dl: npt.NDArray[np.float32]
    bias_l: npt.NDArray[np.float32]
    penalty: float
    held_out_accuracy: float

    def scores(self, features_id: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Class scores of images, float32 [i, l]."""
        return np.asarray(features_id @ self.weights_dl + self.bias_l, np.float32)


def fit_linear_probe(
    features_id: npt.NDArray[np.floating],
    labels_i: npt.NDArray[np.integer],
    n_classes: int,
    *,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    device: str = "auto",
) -> LinearProbe:
    """Fit on the training split.

    The loss is the mean cross-entropy plus half the penalty times the squared norm of the weights (without the bias).
    The features are centred and scaled by one number to a mean squared norm of d. L-BFGS minimises the loss. A fifth
    of the images of each class is held out, and each class keeps at least one image. The penalty with the highest
    accuracy on the held-out images is chosen (of equal ones the largest), and all images are fitted with it.

    Args:
        features_id: One row per image: unit embeddings, or the concatenated embeddings of several models.
        labels_i: Class of every image.
        n_classes: Number of classes.
        penalties: The penalties to choose from.
        seed: Seed for the choice of held-out images.
        device: `auto`, `cpu`, `cuda`, ….

    Raises:
        DataError: Shapes do not match, a label is out of range, a feature is not finite, fewer than two classes occur,
            or no class has two images.
    """
    _check(features_id, labels_i, n_classes)
    held_out_i = _held_out(labels_i, seed)
    if not held_out_i.any():
        raise DataError("no class has two images: no image can be held out to choose the penalty of a linear probe")
    mean_d = features_id.mean(axis=0, dtype=np.float64)
    scale = np.sqrt(np.square(features_id - mean_d).sum(axis=1).mean() / features_id.shape[1])
    if scale == 0:
        raise DataError("all features are equal: a linear probe cannot learn from them")
    standard_id = torch.tensor((features_id - mean_d) / scale, dtype=torch.float32, device=pick_device(device))
    labels = torch.tensor(labels_i, dtype=torch.int64, device=standard_id.device)
    held_out = torch.tensor(held_out_i, device=standard_id.device)
    fitted_id, fitted = standard_id[~held_out], labels[~held_out]
    best, best_right, best_start = 0.0, -1, None
    start = torch.zeros(features_id.shape[1] + 1, n_classes, device=standard_id.device)
    for penalty in sorted(penalties, reverse=True):
        start = _fit(fitted_id, fitted, start, penalty)
        right = int((_logits(standard_id[held_out], start).argmax(dim=1) == labels[held_out]).sum())
        if right > best_right:
            best, best_right, best_start = penalty, right, start
    if best_start is None:
        raise ValueError("no penalties to choose among")
    chosen = _fit(standard_id, labels, best_start, best).cpu().numpy().astype(np.float64)
    weights_dl = chosen[:-1] / scale
    bias_l = chosen[-1] - mean_d @ weights_dl
    return LinearProbe(
        weights_dl.astype(np.float32), bias_l.astype(np.float32), best, best_right / int(held_out_i.sum())
    )


def concatenated(features_by_model: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Concatenate the features of the members of each ensemble.

    Args:
        features_by_model: Features by name. The members of an ensemble are called `ENSEMBLE/MEMBER`.

    Returns:
        Features by name of the ensemble, with members in order of their names. Ensembles of one member are left out.
    """
    members: dict[str, list[str]] = {}
    for name in sorted(features_by_model):
        ensemble, slash, _ = name.rpartition("/")
        if slash:
            members.setdefault(ensemble, []).append(name)
    return {
        ensemble: np.concatenate([features_by_model[name] for name in names], axis=1)
        for ensemble, names in members.items()
        if len(names) > 1
    }


def _check(features_id: npt.NDArray[np.floating], labels_i: npt.NDArray[np.integer], n_classes: int) -> None:
    if features_id.ndim != 2 or labels_i.shape != (len(features_id),):
        raise DataError(
            f"features have shape {features_id.shape} and labels {labels_i.shape}: expected one row per label"
        )
    present = np.unique(labels_i)
    if len(present) < 2:
        raise DataError(f"a linear probe needs training images of two classes; there are {len(present)}")
    if present[0] < 0 or present[-1] >= n_classes:
        raise DataError(f"labels run from {present[0]} to {present[-1]}, outside 0 to {n_classes - 1}")
    if not np.isfinite(features_id).all():
        raise DataError("features contain a value that is not finite: the output of the model is broken")


def _held_out(labels_i: npt.NDArray[np.integer], seed: int) -> npt.NDArray[np.bool_]:
    """Which images to hold out: a share of each class, rounded, and at least one of each class with two images."""
    generator = np.random.default_rng(seed)
    held_out_i = np.zeros(len(labels_i), bool)
    for label in np.unique(labels_i):
        own = generator.permutation(np.flatnonzero(labels_i == label))
        count = min(len(own) - 1, max(1, round(_HELD_OUT_SHARE * len(own))))
        held_out_i[own[:count]] = True
    return held_out_i


def _fit(features_id: torch.Tensor, labels_i: torch.Tensor, start_dl: torch.Tensor, penalty: float) -> torch.Tensor:
    """Fit the weights; the last row is the bias."""
    weights_dl = start_dl.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights_dl], max_iter=_STEPS, tolerance_grad=_GRADIENT_TOLERANCE, line_search_fn="strong_wolfe"
    )
    rows = max(1, _LOGITS_AT_ONCE // weights_dl.shape[1])

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = 0.5 * penalty * weights_dl[:-1].square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        for block_id, block in zip(torch.split(features_id, rows), torch.split(labels_i, rows), strict=True):
            part = torch.nn.functional.cross_entropy(_logits(block_id, weights_dl), block, reduction="sum")
            part = part / len(labels_i)
            part.backward()  # type: ignore[no-untyped-call]
            total = total.detach() + part.detach()
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights_dl.detach()


def _logits(features_id: torch.Tensor, weights_dl: torch.Tensor) -> torch.Tensor:
    return features_id @ weights_dl[:-1] + weights_dl[-1]
