"""A JupyterLab of its own, and a headless Chromium to look at it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import chromium

PATIENCE = 120  # seconds: a busy machine is slow, not broken


@pytest.fixture(scope="session")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tool:
        found = chromium.find(tool)
        if not found:
            pytest.skip(chromium.ADVICE)
        try:
            # No sandbox: inside containers there is none to be had.
            started = tool.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"Chromium at {found} does not start: {str(error)[:200]}")
        yield started
        started.close()


@pytest.fixture
def page(browser) -> Iterator:
    context = browser.new_context(viewport={"width": 1200, "height": 1400})
    context.set_default_timeout(1000 * PATIENCE)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory) -> Iterator:
    """Folder that JupyterLab serves, and its address with {} for a file's name."""
    home = tmp_path_factory.mktemp("lab")
    served = home / "served"
    served.mkdir()
    # Nothing of the user's own settings, and nothing left in them.
    folders = ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR")
    own = {f"JUPYTER_{name}": str(home / name) for name in folders}
    own["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    own["JUPYTERLAB_WORKSPACES_DIR"] = str(home / "workspaces")
    # As in the smoke runs of the notebooks; one thread, for the browser wants the rest.
    own |= {"USS_RUNS": str(home / "runs"), "HF_HUB_OFFLINE": "1"}
    own |= {"OMP_NUM_THREADS": "1"}
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--port=0",
        f"--ServerApp.root_dir={served}",
        "--IdentityProvider.token=test",
        "--LabApp.news_url=None",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=os.environ | own,
            stdout=log,
            stderr=log,
        )
    try:
        address = _address(server, home)
        # Reset: no tab of an earlier page comes back.
        yield served, address + "lab/tree/{}?reset&token=test"
    finally:
        server.terminate()
        server.wait(30)


def _address(server: subprocess.Popen, home: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        for file in (home / "RUNTIME_DIR").glob("jpserver-*.json"):
            text = file.read_text()
            if text.endswith("}"):  # else it is being written
                return json.loads(text)["url"]
        time.sleep(0.2)
    raise RuntimeError(
        f"JupyterLab did not start:\n{(home / 'log').read_text()[-2000:]}"
    )
