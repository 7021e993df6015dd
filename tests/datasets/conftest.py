"""Fixtures of the data set tests."""

import threading
from http.server import ThreadingHTTPServer

import pytest

from tests.datasets.local_server import CONTENT, Handler
from uss_utils.datasets import download


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A running server; the data folder is below ``tmp_path``."""
    monkeypatch.setenv("USS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.deaths, server.resumes = CONTENT, 0, True
        server.requests = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
