"""The access token of a Ray cluster that mode_ray starts on this machine.

Ray runs code for everyone who can connect to it. A local cluster therefore gets a random token, and refuses processes
without it. The token is stored in `$XDG_STATE_HOME/mode_ray/ray/HOST/PID.token` (default: `~/.local/state`), which
only the user can read. A symbolic link beside it is named after the cluster's dashboard, for example `127.0.0.1_8265`:
commands that are given the dashboard's address find the token there. Both are deleted when the cluster ends.

The folder HOST is needed because machines may share a home directory, and 127.0.0.1 differs on each.
"""

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from mode_ray.errors import UsageError

AUTH_MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_TOKEN_BYTES = 32
_SUFFIX = ".token"
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@contextmanager
def new_token_file(environment: Mapping[str, str]) -> Iterator[Path | None]:
    """Create a file with a new token; delete it, and the links to it, when the block ends.

    Yields:
        The file; None if the user set RAY_AUTH_MODE, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.

    Raises:
        UsageError: The file cannot be written.
    """
    if _user_decides(environment) or (environment.get(AUTH_MODE) and _default_token_file().is_file()):
        yield None
        return
    folder = _folder(environment)
    file = folder / f"{os.getpid()}{_SUFFIX}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        _delete_leftovers(folder)
        _delete(file)  # of an ended process that had this pid
        file.touch(mode=0o600, exist_ok=False)
        file.write_text(secrets.token_hex(_TOKEN_BYTES))
    except OSError as error:
        raise UsageError(
            f"cannot write the access token of the local Ray cluster to {file} ({error.strerror}): set XDG_STATE_HOME "
            f"to a folder that you own"
        ) from None
    try:
        yield file
    finally:
        _delete(file)


def publish(token_file: Path, dashboard: str) -> None:
    """Create the link by which commands find a token: the address of the cluster's dashboard, `host:port`."""
    link = token_file.with_name(_link_name(f"http://{dashboard}"))
    link.unlink(missing_ok=True)
    link.symlink_to(token_file.name)


def find_token_file(address: str, environment: Mapping[str, str]) -> Path | None:
    """The token file of the local cluster whose dashboard has this URL; None if this user runs no such cluster."""
    link = _folder(environment) / _link_name(address)
    if not link.is_symlink():
        return None
    file = link.with_name(link.readlink().name)
    return file if file.is_file() and _owner_runs(file) else None


def token_headers(address: str, environment: Mapping[str, str], token_file: Path | None = None) -> dict[str, str]:
    """HTTP headers that authenticate a client of a cluster's dashboard.

    Args:
        address: URL of the dashboard.
        environment: Variables of this process.
        token_file: A token file that the user named.

    Returns:
        The token of `token_file`, or of the local cluster with this address, or with RAY_AUTH_MODE=token the one that
        the environment names. Empty if there is none.

    Raises:
        UsageError: The environment names a file that cannot be read.
    """
    if token_file is None and not _user_decides(environment):
        token_file = find_token_file(address, environment)
    token = _users_token(environment) if token_file is None else token_file.read_text().strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _users_token(environment: Mapping[str, str]) -> str:
    """The token that Ray would use; empty without RAY_AUTH_MODE=token."""
    if (environment.get(AUTH_MODE) or "").lower() != "token":
        return ""
    if token := environment.get(TOKEN, "").strip():
        return token
    named = environment.get(TOKEN_PATH)
    try:
        return (Path(named).expanduser() if named else _default_token_file()).read_text().strip()
    except OSError as error:
        if named is None:
            return ""
        raise UsageError(f"{TOKEN_PATH}={named}: cannot be read ({error.strerror})") from None


def _user_decides(environment: Mapping[str, str]) -> bool:
    """Whether the environment sets a token, or another way of authentication."""
    mode = environment.get(AUTH_MODE) or "token"
    return mode.lower() != "token" or bool(environment.get(TOKEN) or environment.get(TOKEN_PATH))


def _default_token_file() -> Path:
    """Where Ray looks for a token if no variable names a file."""
    return Path.home() / ".ray" / "auth_token"


def _folder(environment: Mapping[str, str]) -> Path:
    state = environment.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "mode_ray" / "ray" / socket.gethostname()


def _link_name(address: str) -> str:
    parts = urlsplit(address)
    host = "127.0.0.1" if parts.hostname in _LOOPBACK_NAMES else parts.hostname
    return f"{host}_{parts.port}"


def _owner_runs(file: Path) -> bool:
    try:
        os.kill(int(file.name.removesuffix(_SUFFIX)), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # the pid belongs to another user now
    return True


def _delete(file: Path) -> None:
    """Delete a token and the links to it, as far as they exist."""
    for link in file.parent.glob("*"):
        if link.is_symlink() and link.readlink().name == file.name:
            link.unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def _delete_leftovers(folder: Path) -> None:
    """Delete the tokens of processes that were killed."""
    for file in folder.glob(f"*{_SUFFIX}"):
        if not _owner_runs(file):
            _delete(file)
