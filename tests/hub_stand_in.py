"""A stand-in for the HTTP API of the Hugging Face hub: repositories in memory, as far as push and load ask for them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"
OWNER = "owner"


@dataclass
class Hub:
    """files: of each repository, by path. requests: method, path and JSON body (or None) of each that changes it."""

    endpoint: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)

    def commit(self, name: str) -> str:
        """40 hex digits over what the repository holds."""
        digest = hashlib.sha1(b"")
        for path, content in sorted(self.files[name].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    """Context manager: the hub, served on a free port until the end."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files}, 200 if match[1] in self.hub.files else 404)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.hub.files[match[1]][line["value"]["path"]] = content
            oid = self.hub.commit(match[1])
            self._json({"commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{match[1]}/commit/{oid}", "success": True})
        else:
            self._json({"error": f"not here: {path}"}, 404)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            self._info(match[1])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            files = self.hub.files.get(match[1], {})
            self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
            )
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._file(match[1], match[2])
        else:
            self._json({"error": f"not here: {path}"}, 404)

    do_HEAD = do_GET

    def _create(self, wanted: dict) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != OWNER:
            self._json({"error": f"You don't have the rights to create a model under {wanted['organization']}"}, 403)
        elif name in self.hub.files:
            self._json({"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"}, 409)
        else:
            self.hub.files[name] = {}
            self.hub.private[name] = wanted.get("private", False) or wanted.get("visibility") == "private"
            self._json({"url": f"{self.hub.endpoint}/{name}"})

    def _info(self, name: str) -> None:
        if name not in self.hub.files:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [{"rfilename": path} for path in self.hub.files[name]]
        self._json({"id": name, "sha": self.hub.commit(name), "siblings": siblings})

    def _file(self, name: str, path: str) -> None:
        content = self.hub.files.get(name, {}).get(path)
        if content is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha1(content).hexdigest()
        self._send(content, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": self.hub.commit(name)})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, fields: object, status: int = 200, headers: dict | None = None) -> None:
        self._send(json.dumps(fields).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, content: bytes, status: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
