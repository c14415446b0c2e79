"""Ray Serve's REST API on a cluster's dashboard, by HTTP alone: Ray's own client takes a second to import."""

import json
import os
import urllib.error
import urllib.request
from typing import Any

from mode_ray.errors import UsageError
from mode_ray.stages.access_token import token_headers

_APPLICATIONS = "/api/serve/applications/"
_REQUEST_SECONDS = 60.0
_MOST_ANSWER_BYTES = 1 << 26
_NO_ACCESS = (401, 403)


class ServeDashboard:
    """The applications that Ray Serve runs on a cluster; a `ServeEndpoint`.

    Args:
        address: The URL of the dashboard.

    Raises:
        UsageError: It is not a URL.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise _unreachable(address, "the address does not begin with http:// or https://")
        self._address = address.rstrip("/")
        self._headers = token_headers(address, os.environ)

    def get_serve_details(self) -> dict[str, Any]:
        """Details of all applications.

        Raises:
            UsageError: No dashboard answers, or it refuses the token.
        """
        try:
            details: dict[str, Any] = json.loads(self._request("GET"))
        except (RuntimeError, ValueError) as error:
            raise _unreachable(self._address, str(error)) from None
        return details

    def deploy_applications(self, config: dict[str, Any]) -> None:
        """Submit a list; applications that it lacks are deleted.

        Raises:
            UsageError: No dashboard answers, or it refuses the token.
            RuntimeError: Ray Serve refuses the list; with its reason.
        """
        self._request("PUT", json.dumps(config).encode())

    def _request(self, method: str, body: bytes | None = None) -> bytes:
        headers = {**self._headers, "Content-Type": "application/json"}
        # The address begins with http; the user names it.
        request = urllib.request.Request(self._address + _APPLICATIONS, body, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as answer:  # noqa: S310
                return bytes(answer.read(_MOST_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            if error.code in _NO_ACCESS:
                raise UsageError(
                    f"{self._address}: the cluster refuses access without its token: set RAY_AUTH_MODE=token and "
                    "RAY_AUTH_TOKEN_PATH to the file with the token it was started with"
                ) from None
            reason = error.read(_MOST_ANSWER_BYTES).decode(errors="replace")
            raise RuntimeError(f"status {error.code}: {reason}") from None
        except OSError as error:
            raise _unreachable(self._address, str(getattr(error, "reason", error))) from None


def _unreachable(address: str, reason: str) -> UsageError:
    return UsageError(
        f"no Ray dashboard at {address} ({' '.join(reason.split())}): give --address or set RAY_DASHBOARD_ADDRESS"
    )
