"""The screenshot of the viewer: the image and the panel, and the mesh to the right of them.

Needs playwright and a Chromium (Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import cips3d
from chromium import CHROMIUM, FLAGS
from cips3d.export.media import save_image
from cips3d.viewer.server import Viewer

_WINDOW = {"width": 800, "height": 500}
_PANEL = 476  # pixels from the left where the panel begins
_SEED = 5


def viewer(out: Path) -> None:
    """Writes the screenshot, with the bundled model."""
    with Viewer(cips3d.load("heads"), port=0, name="heads") as served, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            halves = _halves(browser, served)
        finally:
            browser.close()
    save_image(out, np.concatenate(halves, axis=1))


def _halves(browser: Browser, served: Viewer) -> list[np.ndarray]:
    page = browser.new_page(viewport=_WINDOW)
    page.set_default_timeout(60_000)
    page.goto(served.url)
    page.get_by_text("samples,").wait_for()
    for button in page.locator(".mantine-Notification-closeButton").all():
        button.click()  # a warning that there is no GPU
    served.sessions[0].controls.set(shape_seed=_SEED, appearance_seed=_SEED)
    page.mouse.move(300, 250)
    page.mouse.down()
    page.mouse.move(350, 250, steps=10)
    page.mouse.up()
    image = _settled(page)
    page.get_by_role("combobox", name="Show").click()
    page.get_by_role("option", name="mesh", exact=True).click()
    page.get_by_text("triangles").wait_for()
    page.mouse.move(20, 480)  # away from the tooltips
    return [image, _settled(page)[:, :_PANEL]]


def _settled(page: Page) -> np.ndarray:
    """The window's pixels, once they no longer change."""
    last = None
    for _ in range(60):
        page.wait_for_timeout(500)
        now = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        if last is not None and np.array_equal(last, now):
            return now
        last = now
    raise RuntimeError("the viewer's page keeps changing")
