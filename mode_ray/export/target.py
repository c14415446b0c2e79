"""A directory to export to: absent or empty before, whole or absent afterwards."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mode_ray.errors import UsageError
from mode_ray.storage import Location


@contextmanager
def new_directory(target: Location) -> Iterator[Location]:
    """Yield a directory to write to. It becomes the target when the block ends without an error.

    Locally it is a hidden directory next to the target, which is renamed at the end. The next export removes what a
    killed one left. Object stores cannot rename: there the target itself is written, and deleted if the block raises.

    Raises:
        UsageError: The target is a file, or not empty.
    """
    if not _is_free(target):
        raise UsageError(f"--to {target}: not an absent or empty directory; an export never changes what is there")
    if target.is_local:
        final = Path(target.path)
        draft = final.with_name(f".{final.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            yield Location.parse(str(draft))
            draft.rename(final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    else:
        try:
            yield target
        except BaseException:
            target.delete()
            raise


def _is_free(target: Location) -> bool:
    if target.is_local:
        path = Path(target.path)
        return not path.exists() or (path.is_dir() and not any(path.iterdir()))
    return not target.exists() or (target.is_directory() and not target.files(recursive=True))
