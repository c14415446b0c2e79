"""The log lines of a run as JSON objects, written by the standard logging module."""

import json
import logging
import os
import time
from typing import Literal

from mode_ray.errors import UsageError

LogFormat = Literal["text", "json"]
FORMAT_VARIABLE = "MODE_RAY_LOG_FORMAT"
CONTEXT_FIELDS = ("run", "stage", "shard", "expert")
"""Fields that a line can have, given as `extra` of a logging call."""


def log_format(configured: LogFormat) -> LogFormat:
    """The format of the config, unless the environment overrides it.

    Raises:
        UsageError: The environment variable has another value than text or json.
    """
    named = os.environ.get(FORMAT_VARIABLE) or configured
    if named not in ("text", "json"):
        raise UsageError(f"{FORMAT_VARIABLE}={named!r}: must be text or json")
    return "json" if named == "json" else "text"


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, message, and the known ones of run, stage, shard and expert.

    The field names are those of Ray's JSON logs, which the workers write, so one query finds both.
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
    """The logger of this package, set up once to write JSON lines to standard error."""
    logger = logging.getLogger("mode_ray")
    if not any(isinstance(handler.formatter, JsonLines) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # otherwise the root logger prints every line again
    return logger
