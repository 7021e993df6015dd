"""The book as a reader meets it: from a folder, without a server or a network."""

import pytest

from uss_utils import notebooks

pytestmark = pytest.mark.browser
TELEPHONE = {"width": 390, "height": 800}


@pytest.fixture
def reader(page, site):
    """A browser on the start page, and whatever it asked for that is no file of it."""
    outside, trouble = [], []
    home = site.start.parent.as_uri()

    def note(request):
        if not request.url.startswith((home, "data:")):
            outside.append(request.url)

    page.on("request", note)
    page.on("console", lambda line: trouble.append(line.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.goto(site.start.as_uri())
    yield page
    assert outside == []
    assert [line for line in trouble if "debug" not in line.lower()] == []


def open_chapter(reader, site, number):
    name = notebooks.find([number])[0].stem
    reader.goto((site.start.parent / "notebooks" / f"{name}.html").as_uri())


def test_a_word_finds_a_page(reader):
    field = reader.get_by_placeholder("Search").first
    field.fill("hungarian")
    field.press("Enter")
    found = reader.locator("ul.search li a")
    found.first.wait_for()
    chapter = reader.locator("ul.search a[href*='03_clustering']").first
    chapter.click()
    reader.locator("h1", has_text="03").wait_for()


def test_next_and_previous_walk_through_the_notebooks(reader, site):
    titles = []
    open_chapter(reader, site, "00")
    for _ in range(3):
        titles.append(reader.locator("h1").inner_text())
        reader.locator("a.next-page").click()
        reader.wait_for_url("**/notebooks/0*.html")
        reader.locator("h1").wait_for()
    assert len(set(titles)) == 3
    reader.locator("a.prev-page").click()
    reader.locator("h1", has_text=titles[-1].rstrip("¶#")).wait_for()


def test_the_table_of_contents_leads_to_every_notebook(reader):
    for path in notebooks.find():
        link = reader.locator(f".sidebar-tree a[href$='{path.stem}.html']")
        assert link.is_visible(), path.stem


def test_formulas_are_drawn_as_formulas(reader, site):
    open_chapter(reader, site, "04")
    drawn = reader.locator("math")
    sizes = drawn.evaluate_all(
        "all => all.map(m => [m.clientWidth || m.getBoundingClientRect().width,"
        " m.getBoundingClientRect().height])"
    )
    assert len(sizes) > 10
    assert all(width > 3 and height > 5 for width, height in sizes)
    # A fraction is higher than a line of text: the browser stacked it.
    block = reader.locator("div.formula math").first
    assert block.bounding_box()["height"] > 15
    assert "$$" not in reader.locator("article").inner_text()


def test_solutions_open_by_a_click(reader, site):
    open_chapter(reader, site, "04")
    solution = reader.locator("details").first
    code = solution.locator("pre").first
    assert not code.is_visible()
    solution.locator("summary").click()
    assert code.is_visible()


def test_pictures_are_drawn(reader, site):
    open_chapter(reader, site, "00")
    pictures = reader.locator("article img")
    for i in range(pictures.count()):
        pictures.nth(i).scroll_into_view_if_needed()
    drawn = pictures.evaluate_all(
        "all => all.map(i => i.complete && i.naturalWidth > 0)"
    )
    assert drawn and all(drawn)


def test_no_page_is_wider_than_a_telephone(reader, site):
    reader.set_viewport_size(TELEPHONE)
    for path in sorted(site.start.parent.glob("**/*.html")):
        reader.goto(path.as_uri())
        width = reader.evaluate("document.documentElement.scrollWidth")
        assert width <= TELEPHONE["width"], path.name
        # What is wider than the text can be pushed aside: nothing is cut off.
        cut = reader.evaluate(
            """() => [...document.querySelectorAll(
                'article img, article table, article pre, article math')]
              .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
              .filter(e => {
                for (let p = e; p && p.tagName != 'ARTICLE'; p = p.parentElement)
                  if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX))
                    return false;
                return true; })
              .map(e => e.outerHTML.slice(0, 80))"""
        )
        assert cut == [], path.name
