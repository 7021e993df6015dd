"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several run at a time: threads of one would wait for those of another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def camvid_root() -> Path:
    """Folder of real photographs: $USS_CAMVID or the shared copy beside the repo."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"
    root = Path(os.environ.get("USS_CAMVID") or beside)
    if not root.is_dir():
        pytest.skip(f"no CamVid at {root}; set USS_CAMVID to its folder")
    return root


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The course as a book, built once: some ten seconds."""
    pytest.importorskip("furo", reason="the book needs Sphinx, MyST-NB and Furo")
    from uss_utils.book import write_book

    return write_book(tmp_path_factory.mktemp("site") / "book")
