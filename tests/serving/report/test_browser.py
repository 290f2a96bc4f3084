"""The page in headless Chromium, from a file, with the network off."""

import os
import shutil

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "pages are looked at in Chromium, which is not here: apt-get install chromium, or CHROMIUM=/path"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
# Debian's Chromium runs as root without its sandbox only; it opens a file of ours.
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]
# Whether each picture is drawn: its size, and that an SVG has marks, or an image or a canvas pixels of several colours.
PICTURES = """async () => {
  const colours = async (source) => {
    const image = new Image();
    image.src = source;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), {width: image.width, height: image.height});
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return new Set(new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer)).size;
  };
  return Promise.all([...document.querySelectorAll(".canvas")].map(async (place) => {
    const box = place.querySelector(".main-svg").getBoundingClientRect();
    const image = place.querySelector(".heatmaplayer image");
    const cells = image ? await colours(image.getAttribute("href") || image.getAttribute("xlink:href")) : 0;
    const marks = place.querySelectorAll(".scatterlayer .trace path, .barlayer .point path").length;
    return {id: place.id, width: box.width, height: box.height, drawn: cells > 1 || marks > 0};
  }));
}"""


if CHROMIUM is None:

    def test_no_page_was_looked_at_since_chromium_is_not_installed():
        """Skipped, so that a run says so."""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, page_file):
    """`opened(width, scheme)` is a page; at the end it has neither asked for anything nor complained."""
    wrong, contexts = [], []

    def look(width=1400, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:", "blob:")) or wrong.append(asked.url))
        page.add_init_script("window.problems = []; addEventListener('error', (e) => problems.push(e.message))")
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-drawn=yes]")
        return page

    yield look
    for context in contexts:
        assert [page.evaluate("window.problems") for page in context.pages] == [[]]
        context.close()
    assert wrong == []


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_picture_is_drawn_without_a_horizontal_bar(opened, width, scheme):
    page = opened(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    pictures = page.evaluate(PICTURES)
    assert len(pictures) == 9
    for picture in pictures:
        assert picture["drawn"], picture
        assert 200 < picture["width"] <= width
        assert picture["height"] > 150
    images = page.evaluate("[...document.images].map((image) => [image.naturalWidth, image.clientWidth])")
    assert len(images) > 50
    assert all(natural > 0 and shown >= 50 for natural, shown in images)


HOVERED = {
    "kernel-0": (0.98, ("class 0", "class 1", "cosine", "kernel")),
    "classes-0": (0.98, ("class 0 and class 1", "mean cosine")),
    "layers-0": (0.02, ("of the kernel", "of the parameters")),
}


def test_hovering_shows_which_and_how_much(opened):
    page = opened()
    for picture, (across, words) in HOVERED.items():
        place = page.locator(f"#{picture} .nsewdrag").first
        place.scroll_into_view_if_needed()
        box = place.bounding_box()
        page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * 0.1)
        label = page.locator(f"#{picture} .hoverlayer .hovertext").first
        label.wait_for()
        for word in words:
            assert word in label.text_content()


def test_both_themes(opened):
    page = opened()
    paper = "getComputedStyle(document.body).backgroundColor"
    axis = "getComputedStyle(document.querySelector('#spectrum-0 .xtick text')).fill"
    light = page.evaluate(paper), page.evaluate(axis)
    page.click("#theme")
    page.wait_for_function(f"{axis} !== '{light[1]}'")
    dark = page.evaluate(paper), page.evaluate(axis)
    assert dark[0] != light[0]
    page.click("#theme")
    page.wait_for_function(f"{axis} === '{light[1]}'")


def test_dark_is_what_the_system_asks_for_and_paper_is_light(opened):
    page = opened(scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(paper) != dark
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(paper) == dark
    page.wait_for_timeout(500)


def test_numbers_can_be_copied(opened):
    page = opened()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click("button[data-figure=kernel-0]")
    page.wait_for_function("window.copied")
    rows = [line.split("\t") for line in page.evaluate("window.copied").split("\n")]
    assert len(rows) == len(rows[0]) == 41
    assert float(rows[1][1]) == pytest.approx(1, abs=1e-5)
