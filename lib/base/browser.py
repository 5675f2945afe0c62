"""The Chromium on this machine, driven by Playwright: for screenshots, page timings and tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from lib.base.errors import InputError

FLAGS = [
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
WINDOW = {"width": 1280, "height": 1120}


def chromium() -> str | None:
    """Path of Chromium: the one that CHROMIUM names, or the first on PATH; None if there is none."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return os.environ.get("CHROMIUM") or next(filter(None, found), None)


@contextmanager
def headless(purpose: str) -> Iterator:
    """A headless browser; InputError that names the purpose if there is none on this machine."""
    from playwright.sync_api import sync_playwright  # an optional package

    if chromium() is None:
        raise InputError(
            f"{purpose} need Chromium, which is not installed; install it or name one with CHROMIUM=/path."
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser
        browser.close()
