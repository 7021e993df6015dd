"""Fixtures of the data set tests."""

import pytest

from tests.datasets.local_server import CONTENT, Handler, serving


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A running server; the data folder is below ``tmp_path``."""
    with serving(Handler, monkeypatch, tmp_path) as server:
        server.content, server.deaths, server.resumes = CONTENT, 0, True
        yield server
