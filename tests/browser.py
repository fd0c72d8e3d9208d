"""A real browser without a display, which says what it was asked to load and what it had to complain of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Chromium and its driver: apt-get install chromium chromium-driver",
)


def check_in_browser(page: Path, sections: Sequence[str], width: int) -> None:
    """Every section is shown, nothing overflows a window of that width, no image is broken, no error, no outside request."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(page.resolve().as_uri())
        for name in sections:
            assert driver.find_element(By.CSS_SELECTOR, f"#{name} h2").is_displayed()
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert all(
            driver.execute_script("return [...document.images].map(image => image.complete && image.naturalWidth > 0)")
        )
        assert driver.get_log("browser") == []
        messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    finally:
        driver.quit()
