"""The page of traces for the reference workflow: `pocket-plug trace show --html`, opened from its file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import Look, Picture
from servers import ROOT
from shown import clean, play


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the workflow's run "shop"."""
    folder = tmp_path_factory.mktemp("page")
    play(folder, {"OTEL_SERVICE_NAME": "shop"}, capture="full")
    done = subprocess.run(
        ["pocket-plug", "trace", "show", "shop", "--html", "shop.html"],
        cwd=folder,
        env=clean({}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = folder / "shop.html"
    page.write_text(page.read_text("utf-8").replace(str(ROOT), "/srv/pocket_plug"), "utf-8")  # no path of this machine
    return page


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_shows_the_run_at_a_glance(shop: Path, look: Look, picture: Picture, colours: str) -> None:
    """Light or dark as the system is: the nodes' names, and retries and failures, on one screen."""
    page = look(shop.as_uri(), dark=colours == "dark")
    for name in ("run shop", "fetch", "hurry", "each_pack"):
        page.get_by_text(name).filter(visible=True).first.wait_for()
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)")
    assert (sum(shade) < 3 * 128) == (colours == "dark")
    picture(page, f"trace-{colours}")
