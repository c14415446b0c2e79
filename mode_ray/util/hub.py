"""Whether files of a Hugging Face repository can be had, answered within seconds."""

from collections.abc import Collection

_TIMEOUT_SECONDS = 5.0


def hub_problem(repository: str, files: Collection[str]) -> str | None:
    """Why none of some files of a repository can be loaded; None if one is in the cache or on the hub.

    The loaders of transformers and open_clip retry for a minute where there is no network.

    Args:
        repository: ORG/NAME.
        files: Names of files, of which one is enough.
    """
    # Slow to import, and most commands use no hub.
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
            return None
        found = HfApi().model_info(repository, timeout=_TIMEOUT_SECONDS).siblings or []
    except HFValidationError:
        return "neither a folder on this machine nor a Hugging Face id (ORG/NAME)"
    except RepositoryNotFoundError:
        return "no such model on the Hugging Face hub, or it is private and HF_TOKEN is not set"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set"
    except Exception as error:  # noqa: BLE001  (versions of huggingface_hub use different HTTP libraries)
        reason = f"{constants.ENDPOINT} cannot be reached: {(str(error).splitlines() or [type(error).__name__])[0]}"
    else:
        names = {file.rfilename for file in found}
        return None if names & set(files) else f"this model on the Hugging Face hub has none of {', '.join(files)}"
    return (
        f"not in this machine's cache of Hugging Face models, and {reason}; run `hf download {repository}` on a "
        f"machine with network and copy its {constants.HF_HUB_CACHE} here, or name a folder with the model"
    )
