"""A browser, and pictures of its pages, which are written to docs/pictures for `make pictures`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.append(str(Path(__file__).parent))  # for the modules that tests here share

from servers import ROOT, program

PICTURES = ROOT / "docs" / "pictures"
LARGEST = 200_000
SIZE = (1440, 900)

QUIET = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--no-first-run",
    "--disable-dev-shm-usage",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", action="store_true", help="take the pictures in docs/pictures anew")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. While it is there, `asyncio.run` can't be used in the same thread."""
    executable = program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(QUIET))
        yield browser
        browser.close()


Look = Callable[..., Page]


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    """Opens a tab at an address: `look(url)`, or `look(url, dark=True)`."""
    opened: list[Page] = []

    def look(url: str, *, dark: bool = False) -> Page:
        page = browser.new_page(
            viewport={"width": SIZE[0], "height": SIZE[1]},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        opened.append(page)
        page.set_default_timeout(120_000)
        page.goto(url)
        return page

    yield look
    for page in opened:
        page.close()


Picture = Callable[..., None]


@pytest.fixture
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> Picture:
    """Takes a picture of the page, or of its left part: `picture(page, "phoenix", 800)`. A small file with few colours."""
    folder = PICTURES if request.config.getoption("pictures") else tmp_path

    def picture(page: Page, name: str, width: int = SIZE[0]) -> None:
        seen = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
        seen = seen.crop((0, 0, width, SIZE[1]))
        file = folder / f"{name}.png"
        folder.mkdir(exist_ok=True)
        few = seen.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(file, optimize=True)
        assert file.stat().st_size < LARGEST
        apart = ImageChops.difference(seen, few.convert("RGB"))
        assert max(ImageStat.Stat(apart).mean) < 0.3, "the grounds have other colours than the page"

    return picture
