"""A web server on this machine that can fail in every usual way."""

from http.server import BaseHTTPRequestHandler

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
