"""A Hugging Face hub on loopback: the requests by which HfFileSystem finds, lists and reads the files of a folder."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "someone/small"
_AT = {  # what a request asks for
    "info": re.compile(rf"/api/(datasets|buckets)/{REPO}(/revision/main)?"),
    "tree": re.compile(rf"/api/(datasets|buckets)/{REPO}/tree(/main)?(/(?P<inner>.*))?"),
    "file": re.compile(rf"/(datasets|buckets)/{REPO}/resolve(/main)?/(?P<inner>.*)"),
}


class HubServer:
    """The files below a folder, as the data set and as the bucket `someone/small`.

    Attributes:
        fault: is asked (path) before each request: a status to answer with, or None.
        token: what a request has to send, if it is set.
        paths: of the requests.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fault: Callable[[str], int | None] | None = None
        self.token = ""
        self.paths: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: in two, each request takes 40 ms

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        split = urlsplit(request.path)
        path = unquote(split.path)
        self.paths.append(path)
        status = self.fault(path) if self.fault else None
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            self._send(request, 401, b"{}", **{"X-Error-Code": "RepoNotFound"})  # what is private does not show
        elif status is not None:
            self._send(request, status, b"{}")
        elif _AT["info"].fullmatch(path):
            info = {"id": REPO, "private": bool(self.token), "createdAt": "2026-01-01T00:00:00.000Z", "size": 0}
            self._send(request, 200, json.dumps({**info, "sha": "0" * 40, "totalFiles": 1}).encode())
        elif found := _AT["tree"].fullmatch(path):
            self._send_tree(request, found["inner"] or "", "recursive=true" in split.query.lower())
        elif (found := _AT["file"].fullmatch(path)) and (self.root / found["inner"]).is_file():
            self._send_file(request, (self.root / found["inner"]).read_bytes())
        else:
            self._send(request, 404, b"{}", **{"X-Error-Code": "EntryNotFound" if REPO in path else "RepoNotFound"})

    def _send_tree(self, request: BaseHTTPRequestHandler, inner: str, recursive: bool) -> None:
        top = self.root / inner
        if not top.is_dir():
            return self._send(request, 404, b"{}", **{"X-Error-Code": "EntryNotFound"})
        is_bucket = request.path.startswith("/api/buckets")
        entries = []
        for path in sorted(top.rglob("*") if recursive else top.iterdir()):
            name = str(path.relative_to(self.root))
            if path.is_file():
                entry = {
                    "type": "file",
                    "path": name,
                    "size": path.stat().st_size,
                    "oid": "0" * 40,
                    "xetHash": "0" * 64,
                }
                entries.append({**entry, "mtime": "2026-01-01T00:00:00.000Z"} if is_bucket else entry)
            elif not (is_bucket and recursive):
                entries.append({"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
        return self._send(request, 200, json.dumps(entries).encode())

    def _send_file(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if found is None:
            return self._send(request, 200, data)
        start, stop = int(found[1]), int(found[2]) + 1 if found[2] else len(data)
        if start >= len(data):
            return self._send(request, 416, b"")
        part = data[start:stop]
        content_range = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return self._send(request, 206, part, **{"Content-Range": content_range})

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


@contextmanager
def hub_server(root: Path, monkeypatch: Any) -> Iterator[HubServer]:
    """A hub of the files below a folder, which the clients of this process and of its children ask."""
    from huggingface_hub import constants

    server = HubServer(root)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    # the client has read the variable when it was imported, if it was
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.delenv("HF_TOKEN", raising=False)
    try:
        yield server
    finally:
        server.close()
