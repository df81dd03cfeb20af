"""A hub on this machine that serves the folder of one model and can fail on request."""

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 39 + "1"


class Hub:
    """Serves `folder` as the model `name`, and lists the requested paths in `requests`.

    With `breaks`, the connection ends in the middle of the weights, and all later requests fail.
    """

    def __init__(self, name: str, folder: Path | str, breaks: bool = False):
        self.name = name
        self.folder = Path(folder)
        self.breaks = breaks
        self.gone = False
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that make a process use this hub only, and not wait for it."""
        port = self.server.server_address[1]
        waits = str(Path(__file__).with_name("short_waits"))
        path = os.pathsep.join(filter(None, [waits, os.environ.get("PYTHONPATH")]))
        address = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_DISABLE_XET": "1"}
        return address | {"PYTHONPATH": path}

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        """Sends the requested file, or the hub's answer for a file that does not exist."""
        self.requests.append(request.path)
        if self.gone:
            request.close_connection = True
            return
        if "/tree/" in request.path:
            self._send(request, b"[]", body=body, kind="application/json")
            return
        if request.path.startswith("/api/models/"):
            files = [{"rfilename": path.name} for path in sorted(self.folder.iterdir())]
            description = {"id": self.name, "sha": COMMIT, "siblings": files}
            content = json.dumps(description).encode()
            self._send(request, content, body=body, kind="application/json")
            return
        path = self.folder / request.path.rsplit("/", 1)[1]
        if not path.is_file():
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("X-Repo-Commit", COMMIT)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        self._send(request, path.read_bytes(), body=body, kind="application/octet-stream")

    def _send(
        self, request: BaseHTTPRequestHandler, content: bytes, *, body: bool, kind: str
    ) -> None:
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.end_headers()
        if not body:
            return
        if self.breaks and request.path.endswith(".safetensors"):
            self.gone = True
            request.wfile.write(content[: len(content) // 2])
            request.close_connection = True
            return
        request.wfile.write(content)

    def stop(self) -> None:
        """Stops the server and closes its port."""
        self.server.shutdown()
        self.server.server_close()
