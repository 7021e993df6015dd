"""A web server on this machine that can fail in every usual way."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from uss_utils.datasets import download

CONTENT = bytes(range(256)) * 4096


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.content``; breaks off as often as ``server.deaths`` says.

    Content is the bytes of every file, or a dict of them by path.
    """

    def do_GET(self):
        server = self.server
        start = self.headers.get("Range")
        server.requests.append((self.path, start))
        files = server.content
        body = files.get(self.path) if isinstance(files, dict) else files
        if body is None or "missing" in self.path:
            self.send_error(404)
            return
        resumed = start and server.resumes
        if resumed:
            first, whole = int(start.removeprefix("bytes=").rstrip("-")), len(body)
            body = body[first:]
            if not body:
                self.send_error(416)
                return
        self.send_response(206 if resumed else 200)
        if resumed:
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.deaths > 0:
            server.deaths -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def serving(handler, monkeypatch, folder):
    """A running server of this machine; data go below a folder, nobody waits."""
    monkeypatch.setenv("USS_DATA", str(folder / "data"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.requests = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
