"""A real browser without a screen: Chromium of Debian or of the machine."""

import contextlib
import os
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def _found():
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


def installed():
    """Returns the paths of browser and driver; installs them as root, or skips with a reason."""
    if found := _found():
        return found
    if os.getuid() or not shutil.which("apt-get"):
        pytest.skip("no Chromium with its chromedriver here, and no right to install them")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for what in (["update"], ["install", "-y", "chromium", "chromium-driver"]):
        done = subprocess.run(["apt-get", "-q", *what], env=env, capture_output=True, text=True)
    if found := _found():
        return found
    pytest.skip(f"apt-get cannot install Chromium: {done.stderr[-300:]}")


@contextlib.contextmanager
def page(path, width):
    """Opens a file in a window or, below 600 pixels, on a phone; yields the driver."""
    from selenium import webdriver
    from selenium.webdriver.support.wait import WebDriverWait

    browser, driver = installed()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", f"window-size={width},900"):
        options.add_argument(f"--{flag}")
    if width < 600:
        metrics = {"width": width, "height": 900, "pixelRatio": 2, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    shown = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        shown.get(path.as_uri())
        is_drawn = "return document.documentElement.dataset.drawn"
        WebDriverWait(shown, 120).until(lambda shown: shown.execute_script(is_drawn))
        yield shown
    finally:
        shown.quit()
