"""The page of a run: complete, without network, without scripts."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from uss_utils import pages
from uss_utils.course import Result

pytestmark = pytest.mark.browser

# One red pixel.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElF"
    "TkSuQmCC"
)


def test_opens_jumps_and_loads_nothing(page, tmp_path):
    cells = [
        new_markdown_cell("# First\n\n$x_i$ then [second](01_b.ipynb)"),
        new_code_cell("1", outputs=[new_output("display_data", {"image/png": PIXEL})]),
    ]
    for name, content in (("00_a", cells), ("01_b", [new_markdown_cell("# Second")])):
        nbformat.write(new_notebook(cells=content), tmp_path / f"{name}.ipynb")
    results = [
        Result(name, True, 1.0, 2.0, tmp_path / f"{name}.ipynb")
        for name in ("00_a", "01_b")
    ]
    path = pages.write_page(results, tmp_path, "smoke", "no records yet")

    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    second = page.locator("h1", has_text="Second")
    assert not second.is_visible()
    page.get_by_role("link", name="00_a").click()
    page.locator("math").wait_for()
    pictures = page.locator("img")
    pictures.first.wait_for()
    drawn = pictures.evaluate_all(
        "all => all.map(i => i.complete && i.naturalWidth > 0)"
    )
    assert drawn == [True]
    page.get_by_role("link", name="second", exact=True).click()
    second.wait_for()
    outside = [url for url in asked if not url.startswith(("data:", path.as_uri()))]
    assert outside == []
