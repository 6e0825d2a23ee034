"""A screenshot of the viewer with the bundled model.

Needs playwright and a Chromium (Debian: `apt-get install chromium`).

python docs/screenshot.py docs/images/viewer.png
python docs/screenshot.py phone.png --mode mesh --window 390 844
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import cips3d
from chromium import CHROMIUM, FLAGS
from cips3d.export.media import save_image
from cips3d.model_paths import good_seeds
from cips3d.viewer.server import Viewer


def viewer(out: Path, /, mode: str = "image", window: tuple[int, int] = (1280, 720)) -> None:
    """Writes the screenshot.

    Args:
        mode: What the viewer shows.
        window: Width and height, pixels.
    """
    width, height = window
    first, *_ = good_seeds("heads")
    generator = cips3d.load("heads")
    with (
        Viewer(generator, port=0, name="heads", subject=first) as served,
        sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
    ):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        page.goto(served.url)
        page.get_by_text("samples,").wait_for()
        for button in page.locator(".mantine-Notification-closeButton").all():
            button.click()  # a warning that there is no GPU
        served.sessions[0].controls.mode.value = mode
        if mode == "mesh":
            page.get_by_text("triangles").wait_for()
        save_image(out, _settled(page))


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


if __name__ == "__main__":
    tyro.cli(viewer)
