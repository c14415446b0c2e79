"""Submit jobs to a running cluster and follow them to their end, with the exit code of their command.

This wraps Ray's job client. It adds the selection of files of the working directory, the access token, logs that
continue after a lost connection, and error messages that say how to fix the problem.
"""

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mode_ray.errors import UsageError, WorkerError
from mode_ray.stages.access_token import token_headers

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# In addition to .rayignore and .gitignore.
EXCLUDES = (".git/", ".venv/", "__pycache__/", "*.tar", "*.parquet", "*.safetensors", "*.pt")
# After `ray job stop` a driver that trains writes checkpoints; by default Ray kills it after 3 seconds.
_JOB_ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
_POLL_SECONDS = 2.0
_LONGEST_SILENCE_SECONDS = 300.0


@dataclass(frozen=True)
class JobRequest:
    """A job to submit.

    Attributes:
        command: Words of the command line of the driver.
        working_dir: Folder that is copied to the job, and in which it runs.
        environment: Additional variables of the driver and its workers. The dashboard shows them.
        submission_id: Name of the job; by default Ray chooses one.
    """

    command: Sequence[str]
    working_dir: Path
    environment: Mapping[str, str]
    submission_id: str | None = None


class JobServer:
    """The job server of a cluster.

    Args:
        address: URL of the cluster's dashboard.
        token_file: File with the cluster's token. By default the token comes from RAY_AUTH_TOKEN or
            RAY_AUTH_TOKEN_PATH, or is the token of the local cluster with this address.

    Raises:
        UsageError: No dashboard answers at the address, or it refuses the token.
    """

    def __init__(self, address: str, token_file: Path | None = None) -> None:
        # For Ray's client this variable takes precedence over its argument.
        os.environ[_ADDRESS_VARIABLE] = address
        if token_file is not None and not token_file.is_file():
            raise UsageError(f"--token-file: {token_file}: no such file")
        headers = token_headers(address, os.environ, token_file)
        self.address = address
        # Imported here because Ray is slow to import, and usage errors do not need it.
        from ray.dashboard.modules.job import sdk
        from ray.job_submission import JobSubmissionClient

        # Its messages about connections would appear in the log of the job.
        sdk.logger.setLevel(logging.WARNING)
        with self._errors():
            self._client: JobSubmissionClient = JobSubmissionClient(address, headers=headers)

    def submit(self, request: JobRequest) -> str:
        """Upload the working directory unless the cluster has the same content, and start the job.

        Raises:
            UsageError: The id was used before, or the folder is too large.
        """
        with self._errors():
            return self._client.submit_job(
                entrypoint=shlex.join(request.command),
                submission_id=request.submission_id,
                runtime_env={
                    "working_dir": str(request.working_dir),
                    "excludes": list(EXCLUDES),
                    "env_vars": {**_JOB_ENVIRONMENT, **request.environment},
                },
            )

    def follow(self, job: str, write: Callable[[str], None]) -> tuple[int, str]:
        """Write the log of a job until the job ends. Lost connections are reopened.

        Returns:
            The exit code of the command (1 if it has none), and a description of the end.

        Raises:
            UsageError: There is no such job.
            WorkerError: The cluster has not answered for five minutes.
        """
        from aiohttp import ClientError  # comes with Ray's client

        with self._errors():
            self._client.get_job_info(job)
        cursor, heard = LogCursor(), time.monotonic()
        while True:
            try:
                asyncio.run(self._tail(job, write, cursor))
                with self._errors():
                    details = self._client.get_job_info(job)
                heard = time.monotonic()
            except (OSError, RuntimeError, ClientError, UsageError) as error:
                if time.monotonic() - heard > _LONGEST_SILENCE_SECONDS:
                    raise WorkerError(
                        f"{self.address} no longer answers ({error}); the job may still be running"
                    ) from None
            else:
                if details.status.is_terminal():
                    return _end_of(details)
            time.sleep(_POLL_SECONDS)

    async def _tail(self, job: str, write: Callable[[str], None], cursor: "LogCursor") -> None:
        cursor.reconnected()
        async for text in self._client.tail_job_logs(job):
            if unseen := cursor.unseen(text):
                write(unseen)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Convert the exceptions of Ray's client into one sentence."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise UsageError(
                f"{self.address}: the cluster refuses access without its token: give the file with the token by "
                "--token-file, or set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
            ) from None
        except ConnectionError:
            raise UsageError(
                f"{self.address}: no cluster answers; forward its dashboard first (`ray dashboard CONFIG`, or "
                "`kubectl port-forward service/NAME-head-svc 8265`), or give another --address"
            ) from None
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{self.address}: {_reason(str(error))}") from None


class LogCursor:
    """Finds the new part of a log, because every connection sends the log from its start in pieces of any length."""

    def __init__(self) -> None:
        self._seen = self._at = 0

    def reconnected(self) -> None:
        """The log starts again."""
        self._at = 0

    def unseen(self, text: str) -> str:
        """The part of the next piece that was not seen before."""
        self._at += len(text)
        fresh = self._at - self._seen
        self._seen = max(self._seen, self._at)
        return text[max(0, len(text) - fresh) :] if fresh > 0 else ""


def _end_of(details: "JobDetails") -> tuple[int, str]:
    status = details.status.value.lower()
    if status == "succeeded":
        return 0, status
    code = details.driver_exit_code
    if code is not None and code > 0:
        return code, f"{status}, exit code {code}"
    return 1, f"{status}: {_reason(details.message or 'no reason given')}"


def _reason(text: str) -> str:
    """The last line, without the stack trace above it."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), text)
