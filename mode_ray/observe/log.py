"""A run's lines as JSON objects for machines, by the standard logging module; people's lines are `progress`'s own."""

import json
import logging
import os
import time
from typing import Literal

from mode_ray.errors import UsageError

LogFormat = Literal["text", "json"]
FORMAT_VARIABLE = "MODE_RAY_LOG_FORMAT"
CONTEXT_FIELDS = ("run", "stage", "shard", "expert")
"""What a line may be about, as `extra` of a logging call."""


def log_format(configured: LogFormat) -> LogFormat:
    """The config's format, unless the environment names another.

    Raises:
        UsageError: The environment names neither of the two.
    """
    named = os.environ.get(FORMAT_VARIABLE) or configured
    if named not in ("text", "json"):
        raise UsageError(f"{FORMAT_VARIABLE}={named!r}: write text or json")
    return "json" if named == "json" else "text"


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, message, and of run, stage, shard and expert those that are known.

    The names are those of Ray's own JSON logs, which the workers write, so that one query finds both.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "asctime": f"{second}.{int(record.msecs):03d}Z",
            "levelname": record.levelname,
            "message": record.getMessage(),
            **{name: value for name in CONTEXT_FIELDS if (value := getattr(record, name, None))},
        }
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        return json.dumps(line)


def json_logger() -> logging.Logger:
    """The package's logger, which writes JSON lines to the error output from now on; it stays set up once it is."""
    logger = logging.getLogger("mode_ray")
    if not any(isinstance(handler.formatter, JsonLines) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # the root's handlers would print everything a second time
    return logger
