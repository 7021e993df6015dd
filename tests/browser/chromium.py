"""Which Chromium the tests use: playwright's own, or the system's.

``python -m tests.browser.chromium`` prints its path, and fails where there is none.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ADVICE = "no Chromium: apt-get install chromium, or playwright install chromium"


def find(tool: Any) -> str:
    """Path of a Chromium, empty where there is none.

    Args:
        tool: playwright, started.
    """
    own = tool.chromium.executable_path
    found = [own] if Path(own).is_file() else filter(None, map(shutil.which, NAMES))
    return next(iter(found), "")


if __name__ == "__main__":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        path = find(started)
    print(path or ADVICE)
    sys.exit(not path)
