"""A browser for the tests of pages: Debian's Chromium, or another that Playwright finds, without a window."""

import contextlib
import shutil

import pytest

from denoising.reports import modules


@contextlib.contextmanager
def chromium():
    """A browser; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def evaluate(page, path, expression, argument=None):
    """The value of an expression that uses a module's functions, and of `argument`."""
    return page.evaluate(f"async (argument) => {{\n{modules.joined(path)}\nreturn await ({expression});\n}}", argument)


def drop(page, files):
    """Drops files on the page, {name: bytes}."""
    listed = [[name, list(data)] for name, data in files.items()]
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, data] of files) transfer.items.add(new File([new Uint8Array(data)], name));
            return transfer;
        }""",
        listed,
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
