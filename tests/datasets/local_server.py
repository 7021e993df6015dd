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
        if start and server.resumes:
            body = body[int(start.removeprefix("bytes=").rstrip("-")) :]
            if not body:
                self.send_error(416)
                return
        self.send_response(206 if start and server.resumes else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.deaths > 0:
            server.deaths -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args):
        pass
