"""The page that judges denoised images, opened in a browser: the map of lost structure lies over the picture."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from conftest import ENVIRONMENT, ROOT, noisy_scene
from denoising.files import images
from denoising.imaging import trust
from denoising.imaging.noise import parse_noise
from denoising.inference.denoiser import Denoiser
from denoising.inference.estimate import judge
from denoising.reports.trust_page import TrustReport

sys.path.insert(0, str(ROOT / "tests" / "serving"))
from browser import chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report on two images; of the first one a textured corner was smoothed away."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(3)
    report = TrustReport(str(folder), "Trust")
    for name in ("corner.png", "other.png"):
        clean = np.full((200, 300, 3), 0.5, np.float32)
        clean[120:, 200:] += (
            0.5 * cv2.GaussianBlur(rng.standard_normal((80, 100, 1)).astype(np.float32), (0, 0), 1.2)[..., None]
        )
        noisy = (255 * np.clip(clean + 0.05 * rng.standard_normal(clean.shape), 0, 1)).round().astype(np.uint8)
        denoised = np.full(noisy.shape, 128, np.uint8)
        level = trust.known_level(parse_noise("gauss12.75"), 3)
        found = judge(lambda image: np.full_like(image, 128 / 255), noisy, level, denoised=denoised)
        report.add(name, noisy, denoised, found)
    return report.close(), found.verdict()


def canvas(browser_page, x, y):
    """The colour of a place of the picture, x and y in its pixels, as a screenshot shows it."""
    shot = images.read_image("shot", browser_page.locator("#closer canvas").screenshot()).pages[0]
    scale = browser_page.evaluate("closerScale()")
    return shot[round(shot.shape[0] / 2 + (y - 100) * scale), round(shot.shape[1] / 2 + (x - 150) * scale)].astype(int)


def test_the_map_lies_over_the_picture_and_can_be_hidden(page):
    path, verdict = page
    with chromium() as browser, browser.new_page(viewport={"width": 1000, "height": 800}) as shown:
        complaints = []
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on("console", lambda message: complaints.append(message.text))
        shown.goto(f"file://{path}")
        assert verdict in shown.locator(".verdict").last.inner_text()
        assert "most in the lower right" in verdict
        shown.locator('[data-kind="structure"]').first.click()
        shown.get_by_role("button", name="Lost structure").wait_for()
        for key, scale in (("1", 1), ("2", 2)):
            shown.keyboard.press(key)
            shown.evaluate(f"globalThis.closerScale = () => {scale}")
            shown.wait_for_timeout(200)
            red, green, blue = np.mean([canvas(shown, x, y) for x in (230, 245, 260) for y in (150, 160, 170)], axis=0)
            assert red > green + 40, "the map's colour"
            assert blue > green
            assert np.abs(canvas(shown, 60, 60) - 128).max() <= 1, "nothing lies where nothing was lost"
        shown.keyboard.press("l")
        shown.wait_for_timeout(200)
        assert np.abs(canvas(shown, 245, 160) - 128).max() <= 1
        assert shown.get_by_role("button", name="Lost structure").get_attribute("aria-pressed") == "false"
        shown.keyboard.press("PageDown")
        shown.get_by_role("heading", name="other.png").last.wait_for()
        assert complaints == []


def test_numbers_stay_in_one_piece_on_a_phone(page):
    lines = """[...document.querySelectorAll("th, td + td")].map((cell) => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        return range.getClientRects().length;
    })"""
    with chromium() as browser, browser.new_page(viewport={"width": 360, "height": 740}) as shown:
        shown.goto(f"file://{page[0]}")
        assert set(shown.evaluate(lines)) == {1}
        assert shown.evaluate("document.documentElement.scrollWidth") == 360  # the table is moved, not the page


def test_the_page_of_predict_needs_no_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None; import predict, denoising.reports.trust_page"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, check=True)


def test_pictures_that_are_left_out_are_told(tmp_path, capsys):
    grey = np.full((16, 16, 3), 128, np.uint8)
    report = TrustReport(str(tmp_path), "Many", pictures=1)
    for name in ("a.png", "b.png"):
        report.add(name, grey, grey, judge(lambda image: image, grey, denoised=grey))
    report.close()
    assert capsys.readouterr().err == "--report: it shows pictures of 1 of 2 images\n"


def test_counts_of_a_sensor_are_shown_as_an_image(tmp_path):
    noisy = np.random.default_rng(0).normal(900, 40, (64, 80, 1)).astype(np.uint16)
    found = judge(lambda image: image, noisy, denoised=noisy)
    TrustReport(str(tmp_path), "Counts").add("a.tif", noisy, noisy, found)
    shown = images.read_image(str(tmp_path / "00000-input.png")).pages[0]
    assert shown.min() < 5
    assert shown.max() > 250


def test_counts_are_judged_as_the_same_in_8_bits(tmp_path):
    """Values far beyond 1 neither make the noise large nor the loss of structure."""
    weights = ROOT / "models" / "gauss5_50_fast.pdparams"
    plain = np.clip(np.random.default_rng(0).normal(noisy_scene(160, 192, sigma=0), 12), 0, 255).astype(np.float32)
    judged = []
    for image, span in ((plain / 255, (0.0, 1.0)), (plain * 10 + 300, (300.0, 2850.0))):
        denoiser = Denoiser(str(weights), span=span)
        report = TrustReport(str(tmp_path), "Counts", overwrite=True)
        report.judge("a.tif", image, denoiser(image), denoiser)
        ((_, found),) = report._entries
        judged.append(found)
    assert judged[1].error == pytest.approx(judged[0].error, rel=0.05)
    assert judged[1].sigma == pytest.approx(judged[0].sigma, rel=0.05)
