"""The control `wide`: one model with as many trained parameters as several experts on a locked trunk.

With linear projections, n times the embedding dimension gives exactly n times the parameters of the heads.
"""

from mode_ray.config.train import TrainConfig
from mode_ray.errors import UsageError
from mode_ray.models.clip import ClipModel, build_clip
from mode_ray.models.locking import lock_towers, locked_state


def build_wide_clip(train: TrainConfig, factor: int) -> ClipModel:
    """A model with the locked parts of the config's, and `factor` times its embedding dimension.

    Raises:
        UsageError: Its trained parameters are not `factor` times as many: more is trained than linear projections.
    """
    narrow, clip = (
        build_clip(train.model, train.seed, logit_bias=train.loss.kind == "siglip", embed_factor=each)
        for each in (1, factor)
    )
    for each in (narrow, clip):
        lock_towers(each.module, train.model.lock)
    # Locked weights that are drawn depend on all that is drawn before them.
    clip.module.load_state_dict(locked_state(narrow.module), strict=False)
    width = int(clip.config["model_cfg"]["embed_dim"])
    for name, parameter in clip.module.named_parameters():
        if parameter.requires_grad and parameter.ndim > 0 and width not in parameter.shape:
            raise UsageError(
                f"train.controls: wide needs towers that are locked up to linear projections, but {name} is trained "
                "too; set train.model.lock to all, or leave out wide"
            )
    return clip
