"""A real S3 server on loopback, which can be told to fail, to be slow and to fall silent."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.exceptions import ClientDisconnected
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wsgi import get_input_stream

Fault = Callable[[str, str], "int | float | Literal['old', 'lost'] | None"]
BUCKET = "runs"


class S3Server:
    """moto's S3 over HTTP.

    Attributes:
        fault: is asked (method, path) before each request: a status to answer with, seconds to wait first, `old` for the listing that
            the same request got last, `lost` to do it and hang up without an answer, or None.
        conditions: what is done with `If-Match` and `If-None-Match` of writes and removals.
        requests: how many came, those that failed included.
    """

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.conditions: Literal["kept", "kept by writes", "ignored", "refused"] = "kept"
        self.requests = 0
        self._change = threading.Lock()  # moto looks and writes in two steps
        self._lists: dict[str, list[bytes]] = {}
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer = make_server("127.0.0.1", 0, self._answer, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point S3 clients here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "loopback-key",
            "AWS_SECRET_ACCESS_KEY": "loopback-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests += 1
        found = self.fault(environ["REQUEST_METHOD"], environ["PATH_INFO"]) if self.fault else None
        if isinstance(found, float):
            time.sleep(found)
        elif isinstance(found, int):
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"].read(length)
            start_response(f"{found} Injected", [("Content-Length", "0"), ("Connection", "close")])
            return [b""]
        if environ["REQUEST_METHOD"] in ("PUT", "DELETE"):
            return self._changed(environ, start_response, is_lost=found == "lost")
        query = environ["QUERY_STRING"]
        if "list-type" not in query:
            return self._app(environ, start_response)
        if found == "old" and query in self._lists:
            start_response("200 OK", [("Content-Type", "application/xml")])
        else:
            self._lists[query] = list(self._app(environ, start_response))
        return self._lists[query]

    def _changed(self, environ: dict[str, Any], start_response: Any, *, is_lost: bool) -> Iterable[bytes]:
        conditions = [name for name in ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH") if name in environ]
        refused = {"refused": ("PUT", "DELETE"), "kept by writes": ("DELETE",)}.get(self.conditions, ())
        if conditions and environ["REQUEST_METHOD"] in refused:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("501 Not Implemented", [("Content-Type", "application/xml")])
            return [b"<Error><Code>NotImplemented</Code><Message>A header is not implemented</Message></Error>"]
        if self.conditions == "ignored":
            for name in conditions:
                del environ[name]
        # read before the lock is taken: a client that was stopped amid its request holds up nobody
        try:
            environ["wsgi.input"] = io.BytesIO(get_input_stream(environ).read())
        except ClientDisconnected as error:
            raise ConnectionResetError from error
        with self._change:
            answer = list(self._app(environ, start_response))
        if is_lost:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        return answer


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server with the bucket `runs`, which the environment points S3 clients to."""
    import boto3

    server = S3Server()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    try:
        yield server
    finally:
        server.close()
