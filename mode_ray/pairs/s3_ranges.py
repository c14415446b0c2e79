"""Byte ranges of S3 objects, with one request each.

Arrow's S3 files send a HEAD request for the size before the first read, for every file that is opened. A set of many
tars is read in random order, so that would double the requests. botocore signs a URL once per object. Ranges of it
are then plain HTTP requests, which take less processor time than botocore's own.
"""

import os
from functools import cache, cached_property, lru_cache
from typing import Any

from mode_ray.errors import DataError
from mode_ray.storage import Location
from mode_ray.util.path_notation import bucket_of

SCHEME = "s3://"
_URLS_KEPT = 4096
_URL_SECONDS = 3600
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
_RETRIES = 5
_RETRIED = (429, 500, 502, 503, 504)
_FORBIDDEN = 403


class S3Ranges:
    """Reads ranges; its methods may be called from several threads.

    Args:
        connections: Connections kept open per server.
    """

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._client = lru_cache(self._new_client)
        self._url = lru_cache(_URLS_KEPT)(self._signed_url)

    def read(self, location: Location, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`; fewer if the object ends earlier.

        Raises:
            DataError: The object does not exist.
            PermissionError: The credentials do not allow to read it.
            OSError: The server does not respond, or breaks the connection; a retry may help.
        """
        answer = self._get(location, start, end)
        if answer.status == _FORBIDDEN:
            # The URL, or the credentials that signed it, may have expired.
            self._url.cache_clear()
            answer = self._get(location, start, end)
        match answer.status:
            case 206:
                return bytes(answer.data)
            case 200:  # a server that ignores ranges
                return bytes(answer.data[start:end])
            case 416:
                return b""
            case 404:
                raise DataError(f"{location}: no such file; it was removed since it was assigned")
            case 403:
                raise PermissionError(f"{location}: access denied (HTTP 403)")
        raise OSError(f"{location}: the server responded with HTTP {answer.status}")

    def _get(self, location: Location, start: int, end: int) -> Any:  # noqa: ANN401 - urllib3's response
        from urllib3.exceptions import HTTPError

        try:
            return self._pool.request(
                "GET", self._url(location), headers={"Range": f"bytes={start}-{end - 1}"}, decode_content=False
            )
        except HTTPError as error:
            raise OSError(f"{location}: {error}") from error

    @cached_property
    def _pool(self) -> Any:  # noqa: ANN401 - urllib3 is imported by loader processes only
        import urllib3
        from botocore.httpsession import get_cert_path

        return urllib3.PoolManager(
            maxsize=self._connections,
            timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
            retries=urllib3.Retry(
                _RETRIES, redirect=0, status_forcelist=_RETRIED, backoff_factor=0.2, raise_on_status=False
            ),
            ca_certs=os.environ.get("AWS_CA_BUNDLE") or get_cert_path(True),
        )

    def _signed_url(self, location: Location) -> str:
        _, bucket, anonymous = bucket_of(location.uri)
        key = location.path.split("/", 1)[1]
        client = self._client(location.filesystem.region, anonymous)
        url: str = client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, _URL_SECONDS)
        return url

    def _new_client(self, region: str, anonymous: bool) -> Any:  # noqa: ANN401 - botocore's generated class
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.session import get_session

        session = get_session()
        session.register_component("data_loader", _service_descriptions())
        settings = Config(signature_version=UNSIGNED) if anonymous else Config(signature_version="s3v4")
        return session.create_client("s3", region_name=region, config=settings)


@cache
def _service_descriptions() -> Any:  # noqa: ANN401 - botocore has no types
    """Botocore's descriptions of services, read once a process: a client then takes 10 ms and not 65."""
    from botocore.session import get_session

    return get_session().get_component("data_loader")
