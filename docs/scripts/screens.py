"""The pictures of the tab in the README and in `tab.md`, out of a log.

    python examples/digits.py --epochs 10 --images-per-class 40
    python docs/scripts/screens.py logs

Needs chromium, chromedriver and selenium. Shows the overview in both themes, and the unit that contributes most in the
last layer, each as high as there is something to see, into `docs/images/`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from tensorboard_plugin.conftest import FLAGS, tensorboard
from tensorboard_plugin.page import Page

IMAGES = Path(__file__).parents[1] / "images"
WIDTH = 1400  # TensorBoard's own bar has room for all tabs
PICTURES = {
    "unit_roles_tab_light": ({"view": "overview"}, False, ".view-overview .wide-table"),
    "unit_roles_tab_dark": ({"view": "overview"}, True, ".view-overview .wide-table"),
    "unit_roles_tab_unit": ({"view": "unit"}, False, ".view-unit .split"),
}
"""By name: what is shown, whether in the dark, and what the picture ends with."""


def browser() -> Any:
    """A headless Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def take(driver: Any, address: str, name: str) -> None:
    """One picture."""
    state, dark, end = PICTURES[name]
    driver.set_window_size(WIDTH, 2000)
    page = Page(driver, address, dark=dark, **state)
    below = page.js(f"return Math.ceil(document.querySelector('{end}').getBoundingClientRect().bottom)") + 22
    driver.switch_to.default_content()
    top = driver.execute_script("return document.querySelector('iframe').getBoundingClientRect().top")
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": WIDTH, "height": int(top + below), "deviceScaleFactor": 1, "mobile": False},
    )
    driver.switch_to.frame(driver.find_element("css selector", "iframe"))
    page.drawn()
    driver.switch_to.default_content()
    driver.save_screenshot(str(IMAGES / f"{name}.png"))
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, help="a directory with one run")
    options = parser.parse_args()
    driver = browser()
    try:
        with tensorboard(options.logs, runs=1) as address:
            for name in PICTURES:
                take(driver, address, name)
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
