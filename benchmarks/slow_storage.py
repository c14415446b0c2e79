"""An S3 server on the loopback that answers every request late, and counts them; for `head.py`.

It holds objects in memory. Objects without content, of which only names and sizes are listed, stand for hundreds of
thousands of shards. It speaks as much of S3 as Arrow's client uses.
"""

import argparse
import bisect
import io
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE_KEYS = 1000  # as S3
MODIFIED_UNIX_SECONDS = 1_790_000_000
CONTROL = "/control"


@dataclass(frozen=True)
class StoredObject:
    """An object of the bucket; without content, it can only be listed."""

    size_bytes: int
    content: bytes | None = None


class Bucket:
    """Objects by key, and the requests since the last reset. Every request waits `latency_seconds`."""

    def __init__(self) -> None:
        self.latency_seconds = 0.0
        self.requests: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.objects: dict[str, StoredObject] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self._keys: list[str] = []

    def list_only(self, sizes: dict[str, int]) -> None:
        """Add objects without content."""
        with self.lock:
            self.objects.update({key: StoredObject(size) for key, size in sizes.items()})
            self._keys = sorted(self.objects)

    def put(self, key: str, content: bytes) -> None:
        """Store an object."""
        with self.lock:
            if key not in self.objects:
                bisect.insort(self._keys, key)
            self.objects[key] = StoredObject(len(content), content)

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""
        with self.lock:
            if self.objects.pop(key, None) is not None:
                self._keys.pop(bisect.bisect_left(self._keys, key))

    def page(self, prefix: str, after: str, delimiter: str, most: int) -> tuple[list[str], list[str], str]:
        """Keys and common prefixes of one page, and where the next one begins; empty for the last."""
        keys: list[str] = []
        folders: list[str] = []
        with self.lock:
            place = bisect.bisect_left(self._keys, max(prefix, after))
            while place < len(self._keys) and self._keys[place].startswith(prefix):
                key = self._keys[place]
                if len(keys) + len(folders) == most:
                    return keys, folders, key
                end = key.find(delimiter, len(prefix)) if delimiter else -1
                if end < 0:
                    keys.append(key)
                    place += 1
                else:
                    folders.append(key[: end + 1])
                    place = bisect.bisect_left(self._keys, key[:end] + chr(ord(delimiter) + 1), place)
        return keys, folders, ""


class Handler(BaseHTTPRequestHandler):
    """S3's requests on one bucket, and `/control`, by which the benchmark sets and asks the server."""

    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def _handle(self) -> None:
        url = urlsplit(self.path)
        body = self._body()
        if url.path == CONTROL:
            self._control(json.loads(body))
            return
        _, key = f"{unquote(url.path.lstrip('/'))}/".split("/", 1)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        kind = f"LIST {query.get('prefix', '')}" if not key and self.command == "GET" else self.command
        with self.bucket.lock:
            self.bucket.requests[kind] += 1
        time.sleep(self.bucket.latency_seconds)
        key = key.removesuffix("/") if not key.endswith("//") else key[:-1]
        getattr(self, f"_{self.command.lower()}")(key, query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - as the library calls them

    def _body(self) -> bytes:
        """What the client sent, without the chunks of HTTP and of AWS' own encoding."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = _joined_chunks(self.rfile)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return _joined_chunks(io.BytesIO(body)) if "aws-chunked" in self.headers.get("Content-Encoding", "") else body

    def _control(self, order: dict[str, object]) -> None:
        if "latency_seconds" in order:
            self.bucket.latency_seconds = float(str(order["latency_seconds"]))
        sizes = order.get("sizes")
        if isinstance(sizes, dict):
            self.bucket.list_only(sizes)
        with self.bucket.lock:
            counted = dict(self.bucket.requests)
            self.bucket.requests.clear()
        self._answer(200, json.dumps(counted).encode())

    def _get(self, key: str, query: dict[str, str], _body: bytes) -> None:
        if not key:
            self._list(query)
            return
        found = self.bucket.objects.get(key)
        if found is None or found.content is None:
            self._missing()
            return
        wanted = self.headers.get("Range")
        if wanted is None:
            self._answer(200, found.content, self._about(found))
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else found.size_bytes, found.size_bytes)
        place = {"Content-Range": f"bytes {start}-{stop - 1}/{found.size_bytes}"}
        self._answer(206, found.content[start:stop], {**self._about(found), **place})

    def _head(self, key: str, _query: dict[str, str], _body: bytes) -> None:
        found = self.bucket.objects.get(key)
        if not key:
            self._answer(200, b"", {"x-amz-bucket-region": "us-east-1"})
        elif found is None:
            self._answer(404, b"")
        else:
            self._answer(200, b"", self._about(found), length=found.size_bytes)

    def _put(self, key: str, query: dict[str, str], body: bytes) -> None:
        if "uploadId" in query:
            self.bucket.uploads[query["uploadId"]][int(query["partNumber"])] = body
        elif key:
            self.bucket.put(key, body)
        self._answer(200, b"", {"ETag": '"0"'})

    def _post(self, key: str, query: dict[str, str], body: bytes) -> None:
        if "uploads" in query:
            self.bucket.uploads[key] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{escape(key)}</UploadId></InitiateMultipartUploadResult>"
        elif "delete" in query:
            for part in body.decode().split("<Key>")[1:]:
                self.bucket.delete(part.split("</Key>")[0])
            text = "<DeleteResult/>"
        else:
            parts = self.bucket.uploads.pop(query["uploadId"])
            self.bucket.put(key, b"".join(parts[number] for number in sorted(parts)))
            text = '<CompleteMultipartUploadResult><ETag>"0"</ETag></CompleteMultipartUploadResult>'
        self._answer(200, text.encode())

    def _delete(self, key: str, _query: dict[str, str], _body: bytes) -> None:
        self.bucket.delete(key)
        self._answer(204, b"")

    def _list(self, query: dict[str, str]) -> None:
        most = min(PAGE_KEYS, int(query.get("max-keys", PAGE_KEYS)))
        keys, folders, following = self.bucket.page(
            query.get("prefix", ""), query.get("continuation-token", ""), query.get("delimiter", ""), most
        )
        modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(MODIFIED_UNIX_SECONDS))
        parts = [
            f"<Contents><Key>{escape(key)}</Key><LastModified>{modified}</LastModified>"
            f"<Size>{self.bucket.objects[key].size_bytes}</Size></Contents>"
            for key in keys
        ]
        parts += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders]
        more = f"<NextContinuationToken>{escape(following)}</NextContinuationToken>" if following else ""
        truncated = str(bool(following)).lower()
        text = (
            f"<ListBucketResult><KeyCount>{len(keys) + len(folders)}</KeyCount>"
            f"<IsTruncated>{truncated}</IsTruncated>{more}{''.join(parts)}</ListBucketResult>"
        )
        self._answer(200, text.encode())

    def _missing(self) -> None:
        self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>no such object</Message></Error>")

    def _about(self, found: StoredObject) -> dict[str, str]:
        modified = formatdate(MODIFIED_UNIX_SECONDS, usegmt=True)
        return {"ETag": f'"{found.size_bytes}"', "Last-Modified": modified, "Accept-Ranges": "bytes"}

    def _answer(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _joined_chunks(stream: io.BufferedIOBase) -> bytes:
    """The content of chunks, each after a line with its size in hexadecimal; then lines up to an empty one."""
    chunks = []
    while size := int(stream.readline().split(b";")[0], 16):
        chunks.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():
        pass
    return b"".join(chunks)


class Server(ThreadingHTTPServer):
    """The server; its threads end with the process."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """A client that closed its connection needs no message."""


def serve() -> None:
    """Run until standard input ends, with the process that started this one; prints the port."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    Handler.bucket = Bucket()
    with Server(("127.0.0.1", 0), Handler) as server:
        print(server.server_port, flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()


if __name__ == "__main__":
    serve()
