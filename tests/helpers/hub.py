"""A hub on this machine that serves one model's folder, and goes away when it is told to."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 39 + "1"


class Hub:
    """Serves `folder` as the model `name`; with `breaks` weights stop half-way, and then all does.

    `asked` lists the paths that were asked for.
    """

    def __init__(self, name: str, folder: Path | str, breaks: bool = False):
        self.name, self.folder = name, Path(folder)
        self.breaks, self.gone = breaks, False
        self.asked: list[str] = []
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
        """What makes a process ask this hub; it keeps nothing of others."""
        port = self.server.server_address[1]
        return {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_DISABLE_XET": "1"}

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        """The file that is asked for, or what the hub says of one that it has not."""
        self.asked.append(request.path)
        if self.gone:
            request.close_connection = True
            return
        if "/tree/" in request.path:
            self._send(request, 200, b"[]", body, "application/json")
            return
        if request.path.startswith("/api/models/"):
            files = [{"rfilename": path.name} for path in sorted(self.folder.iterdir())]
            told = json.dumps({"id": self.name, "sha": COMMIT, "siblings": files}).encode()
            self._send(request, 200, told, body, "application/json")
            return
        path = self.folder / request.path.rsplit("/", 1)[1]
        if not path.is_file():
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("X-Repo-Commit", COMMIT)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        self._send(request, 200, path.read_bytes(), body, "application/octet-stream")

    def _send(self, request, code, told, body, kind):
        request.send_response(code)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(told)))
        request.send_header("ETag", f'"{hashlib.sha256(told).hexdigest()}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.end_headers()
        if not body:
            return
        if self.breaks and request.path.endswith(".safetensors"):
            self.gone = True
            request.wfile.write(told[: len(told) // 2])
            request.close_connection = True
            return
        request.wfile.write(told)

    def stop(self) -> None:
        """Nothing listens any more."""
        self.server.shutdown()
        self.server.server_close()
