"""The service's page, driven in a browser as people do: from the drop of images to the saved archive."""

import base64
import contextlib
import io
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import chromium, drop, evaluate
from PIL import Image

import predict
from arch_unet import build_network
from conftest import ROOT, noisy_scene
from denoising.files import images
from denoising.imaging import detail
from denoising.inference import checkpoint

pytest.importorskip("aiohttp")

from servers import as_bytes, serving, wait_for

APP = ROOT / "denoising" / "serving" / "app"
WEIGHTS = ROOT / "best_model.pdparams"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


# --- Its modules ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blank(browser):
    """A page without anything, to try modules on."""
    with browser.new_page() as page:
        yield page


def test_an_archive_is_read_by_others(blank):
    files = {"a.png": b"first", "deep/写真.jpg": bytes(range(256)) * 300, "empty": b""}
    listed = [[name, list(data)] for name, data in [*files.items(), ("a.png", b"second")]]
    made = evaluate(blank, APP / "zip.js", """(async () => {
        const files = argument.map(([name, data]) => ({ name, blob: new Blob([new Uint8Array(data)]) }));
        const bytes = new Uint8Array(await (await zip(files, new Date(2024, 1, 29, 13, 5, 8))).arrayBuffer());
        return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
    })()""", listed)  # fmt: skip
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(made))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {**files, "a_2.png": b"second"}
        assert archive.getinfo("a.png").date_time == (2024, 2, 29, 13, 5, 8)


def rgba(image):
    return list(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA).ravel().tolist())


@pytest.mark.parametrize(("height", "width"), [(61, 83), (5, 130), (1, 1)])
def test_the_browser_mixes_as_the_service_does(blank, height, width):
    noisy = noisy_scene(height, width)
    denoised = cv2.GaussianBlur(noisy, (0, 0), 1.0).reshape(noisy.shape)
    settings = [(1, 0, 1), (0, 0, 1), (0.6, 0, 1), (1, 0, 0.2), (1, 1, 1), (0.7, 0.5, 0.3), (0, 1, 0)]
    argument = {"noisy": rgba(noisy), "denoised": rgba(denoised), "size": (width, height), "settings": settings}
    found = evaluate(blank, APP / "mix.js", """(() => {
        const { size: [width, height], settings } = argument, inside = [0, 0, width, height];
        const [noisy, denoised] = [argument.noisy, argument.denoised].map((values) => Uint8ClampedArray.from(values));
        const strengths = bandStrengths([bandSamples({ noisy, denoised, width, height, inside })]);
        const texture = textureOf(lumaOf(noisy, denoised), width, height, strengths);
        return settings.map(([strength, detail, chroma]) => [...mix(noisy, denoised, texture,
            { strength, detail, chroma }, new Uint8ClampedArray(noisy.length))]);
    })()""", argument)  # fmt: skip
    for setting, pixels in zip(settings, found, strict=True):
        mixed = np.array(pixels, np.uint8).reshape(height, width, 4)[..., :3]
        expected = detail.mix(noisy, denoised, detail.Amount(*setting))
        difference = np.abs(mixed.astype(int) - expected)
        assert difference.max() <= 1, setting
        assert (difference > 0).mean() < 0.01, setting


def test_what_was_removed_is_shown_around_grey(blank):
    noisy, denoised = [10, 200, 30, 255], [20, 190, 0, 255]
    shown = evaluate(blank, APP / "mix.js", "[...removed(...argument, 4, new Uint8ClampedArray(4))]", [noisy, denoised])
    assert shown == [128 - 40, 128 + 40, 128 + 120, 255]


# --- The page ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    with serving("--model_path", WEIGHTS, "--max_megapixels", 2) as server:
        yield server


@pytest.fixture
def page(browser, server):
    """The page with weights that ship."""
    with opened(browser, server) as page:
        yield page


@contextlib.contextmanager
def opened(browser, server):
    """The page, which must load nothing from elsewhere, break no rule of its policy, and make no mistake."""
    with browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True) as context:
        page, complaints, asked = context.new_page(), [], []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.url)
        yield page
        # A browser writes each refused request to its console, and what it thinks of how these tests read the canvas.
        assert [line for line in complaints if "status of 4" not in line and "readback" not in line] == []
        assert {url for url in asked if not url.startswith((f"{server.url}/", "data:", f"blob:{server.url}/"))} == set()


def expect(locator):
    """What a part of the page comes to show; an image takes seconds where many tests run."""
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    return expect(locator)


def files_of_kinds():
    """One file of each kind that people have, and one that is none."""
    colour, deep = noisy_scene(90, 120), noisy_scene(64, 80, 3, 1).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    jpeg = io.BytesIO()
    Image.fromarray(noisy_scene(70, 96, seed=2)).save(jpeg, "JPEG", exif=exif)
    return {
        "colour.png": images.encode("colour.png", colour),
        "photo.jpg": jpeg.getvalue(),
        "deep.tif": images.encode("deep.tif", deep),
        "text.png": b"no image",
    }


def saved(download):
    """The bytes of a download, and its name."""
    return Path(download.path()).read_bytes(), download.suggested_filename


def test_from_drop_to_saved_zip(page, tmp_path):
    """A broken image says why, and the others go on; what is saved is what predict.py writes, with its amounts."""
    files = files_of_kinds()
    drop(page, files)
    expect(page.locator("#strip .done")).to_have_count(3)
    expect(page.locator("#strip .failed")).to_have_count(1)
    expect(page.locator("#said")).to_have_text("3 of 4 done, 1 failed")
    page.locator("#strip .failed .thumb").click()
    expect(page.locator("#state-text")).to_contain_text("No image, broken, or of a format that is not read")
    page.locator("#strip .thumb").first.click()
    for name, value in (("strength", 0.8), ("detail", 0.4), ("chroma", 0.6)):
        page.fill(f"#{name}", str(value))
    page.click("#to-all")
    with page.expect_download(timeout=60_000) as download:
        page.click("#save-all")
    body, name = saved(download.value)
    assert name == "denoised.zip"
    (tmp_path / "in").mkdir()
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    flags = {"--image_path": tmp_path / "in", "--model_path": WEIGHTS, "--save_dir": tmp_path / "out"}
    amounts = {"--strength": 0.8, "--detail": 0.4, "--chroma": 0.6}
    arguments = [str(part) for pair in {**flags, **amounts}.items() for part in pair]
    assert predict.main([*arguments, "--keep_format"]) == 1
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["colour_denoise.png", "deep_denoise.tif", "photo_denoise.jpg"]
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "out" / name).read_bytes(), name


def test_the_picture_follows_the_amounts_at_once(page, server):
    """What the canvas shows, at 200 % and pixel by pixel, is what the service computes for the same amounts."""
    data = images.encode("a.png", noisy_scene(90, 120))
    drop(page, {"a.png": data})
    expect(page.locator("#strip .done")).to_have_count(1)
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    page.locator(".stage").focus()
    for key in "2,,,,,,,,,,,,,,,,,,,,,,,,,":  # the split line goes to the left edge
        page.keyboard.press(key)
    expect(page.locator(".percent")).to_have_text("200 %")
    for amounts in ((1, 0, 1), (0.5, 0, 1), (0.5, 0, 0.3), (1, 0.8, 1)):
        for name, value in zip(("strength", "detail", "chroma"), amounts, strict=True):
            page.fill(f"#{name}", str(value))
        page.wait_for_timeout(300)
        assert sent == []
        query = "/denoise?strength={}&detail={}&chroma={}".format(*amounts)
        expected = images.read_image("answer", server.post(data, query)[2]).pages[0].astype(int)
        shown = canvas(page)
        top, left = (shown.shape[0] - 180) // 2, (shown.shape[1] - 240) // 2
        difference = np.abs(shown[top : top + 180 : 2, left : left + 240 : 2] - expected)
        assert (shown[top : top + 180 : 2] == shown[top + 1 : top + 181 : 2]).all(), "pixels are squares"
        assert difference.max() <= 2, amounts
        assert (difference > 1).mean() < 0.001, amounts
    page.keyboard.down("o")
    page.wait_for_timeout(300)
    shown = canvas(page)
    assert (shown[top : top + 180 : 2, left : left + 240 : 2] == noisy_scene(90, 120)).all()
    page.keyboard.up("o")


def canvas(page):
    """The pixels of the viewer, once it has drawn what was asked for: it draws in the next frame."""
    pixels = page.evaluate("""async () => {
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        const canvas = document.querySelector(".stage canvas"), { width, height } = canvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        let text = "";
        for (let i = 0; i < data.length; i += 4) text += String.fromCharCode(data[i], data[i + 1], data[i + 2]);
        return [height, width, btoa(text)];
    }""")
    height, width, text = pixels
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 3).astype(int)


def test_what_was_lost_is_said_and_shown(browser, tmp_path):
    """A network that smooths everything away: the words say so, and the map lies over the denoised picture."""
    network = build_network(n_feature=4)
    for parameter in network.parameters():
        parameter.set_value(parameter * 0)
    network.parameters()[-1].set_value(network.parameters()[-1] + 0.5)
    path = tmp_path / "smooth.pdparams"
    options = {**network.options, "noisetype": "gauss25"}
    checkpoint.save_network(path, checkpoint.network_state(network), options)
    rng = np.random.default_rng(0)
    clean = np.full((300, 400, 3), 128.0)
    clean[150:, :200] += 60 * cv2.GaussianBlur(rng.standard_normal((150, 200, 1)), (0, 0), 1.2)[..., None]
    noisy = (clean + 12 * rng.standard_normal(clean.shape)).clip(0, 255).round().astype(np.uint8)
    with serving("--model_path", path) as server, opened(browser, server) as page:
        drop(page, {"a.png": images.encode("a.png", noisy)})
        expect(page.locator("#strip .done")).to_have_count(1)
        page.locator(".stage").focus()
        for key in "1,,,,,,,,,,,,,,,,,,,,,,,,,":  # the split line goes to the left edge
            page.keyboard.press(key)
        plain = canvas(page)
        page.get_by_role("button", name="Lost structure").click()
        words = "At full strength it loses \\d+ % of the structure, in \\d+ % of the image, most in the lower left"
        expect(page.locator("#lost")).to_contain_text(re.compile(words))
        expect(page.get_by_role("button", name="Lost structure")).to_have_attribute("aria-pressed", "true")
        page.wait_for_timeout(300)
        over = canvas(page)
        top, left = (over.shape[0] - 300) // 2, (over.shape[1] - 400) // 2
        changed = np.abs(over - plain).max(axis=2)[top : top + 300, left : left + 400] > 10
        assert changed[170:, 20:180].mean() > 0.3
        assert changed[:120].sum() == 0
        page.keyboard.press("l")
        page.wait_for_timeout(300)
        assert (canvas(page) == plain).all()


def test_saved_in_other_formats(page):
    drop(page, {"deep.tif": files_of_kinds()["deep.tif"]})
    expect(page.locator("#strip .done")).to_have_count(1)
    for choice, suffix, kind in (("png", ".png", np.uint16), ("tiff", ".tif", np.uint16), ("jpeg", ".jpg", np.uint8)):
        page.select_option("#format", choice)
        with page.expect_download(timeout=60_000) as download:
            page.click("#save")
        body, name = saved(download.value)
        assert name == f"deep_denoise{suffix}"
        picture = images.read_image(name, body)
        assert picture.pages[0].shape == (64, 80, 3)
        assert picture.pages[0].dtype == kind
        expect(page.locator("#saving")).to_have_text(f"Saved {name}.")
    sizes = []
    for quality in (60, 98):
        page.fill("#quality", str(quality))
        with page.expect_download(timeout=60_000) as download:
            page.click("#save")
        sizes.append(len(saved(download.value)[0]))
    assert sizes[0] < 0.6 * sizes[1]


def test_images_that_come_and_go_are_counted(page):
    for count, name in enumerate(("a.png", "b.png"), 1):
        drop(page, {name: as_bytes(noisy_scene(40, 50), "PNG")})
        expect(page.locator("#strip .done")).to_have_count(count)
    expect(page.locator("#said")).to_have_text("2 of 2 done")
    expect(page.locator("#to-all")).to_be_visible()
    expect(page.locator("#save-all")).to_have_text("Save all 2 as zip")
    page.get_by_role("button", name="Remove b.png").press("Enter")
    expect(page.locator("#said")).to_have_text("")
    expect(page.locator("#to-all, #save-all").locator("visible=true")).to_have_count(0)
    expect(page.locator("#strip .thumb")).to_be_focused()


def test_what_cannot_be_saved_is_named_and_the_others_are_saved(page):
    clear = np.dstack([noisy_scene(60, 70), np.full((60, 70), 99, np.uint8)])
    drop(page, {"clear.png": as_bytes(clear, "PNG"), "colour.png": as_bytes(noisy_scene(50, 60), "PNG")})
    expect(page.locator("#strip .done")).to_have_count(2)
    page.select_option("#format", "jpeg")
    with page.expect_download(timeout=60_000) as download:
        page.click("#save-all")
    with zipfile.ZipFile(io.BytesIO(saved(download.value)[0])) as archive:
        assert archive.namelist() == ["colour_denoise.jpg"]
    why = ".jpg cannot hold uint8 of 3 channel(s) with transparency: use .png .webp .tif."
    expect(page.locator("#saving")).to_have_text(f"Saved 1 of 2 images. clear.png: {why}")
    page.get_by_role("button", name="Remove colour.png").click()
    page.click("#save")
    expect(page.locator("#saving")).to_have_text(why)


def test_the_view_is_moved_by_keys_wheel_and_pointer(browser, weights):
    with serving("--model_path", weights) as server, opened(browser, server) as page:
        check_the_view(page)


def check_the_view(page):
    """Each key and gesture does to an image what it should."""
    drop(page, {"a.png": images.encode("a.png", noisy_scene(600, 800))})
    expect(page.locator("#strip .done")).to_have_count(1)
    percent, stage = page.locator(".percent"), page.locator(".stage")
    stage.focus()
    page.keyboard.press("2")
    expect(percent).to_have_text("200 %")
    page.keyboard.press("+")
    expect(percent).to_have_text("250 %")
    box = stage.bounding_box()
    at = (round(box["x"] + box["width"] / 4), round(box["y"] + box["height"] / 4))
    page.keyboard.press("1")
    page.keyboard.press("o")
    x, y = (at[0] - round(box["x"]), at[1] - round(box["y"]))
    before = canvas(page)[y, x]
    page.mouse.move(*at)
    page.mouse.wheel(0, -462.1)  # exp(0.0015 * 462.1) is 2
    expect(percent).to_have_text("200 %")
    assert np.abs(canvas(page)[y - 1 : y + 2, x - 1 : x + 2] - before).max(axis=2).min() == 0, "it zooms at the pointer"
    page.mouse.down()
    page.mouse.move(at[0] + 50, at[1] + 30)
    page.mouse.up()
    page.wait_for_timeout(200)
    moved = canvas(page)[y + 29 : y + 32, x + 49 : x + 52]
    assert np.abs(moved - before).max(axis=2).min() == 0, "it follows the pointer"
    page.keyboard.press("f")
    line = page.locator(".line").bounding_box()
    middle = line["x"] + line["width"] / 2
    page.mouse.move(middle, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(middle - 100, box["y"] + 50, steps=3)
    page.mouse.up()
    page.wait_for_timeout(200)
    line = page.locator(".line").bounding_box()
    assert line["x"] + line["width"] / 2 == pytest.approx(middle - 100, abs=2)
    page.keyboard.press("r")
    expect(page.locator(".stage canvas")).to_have_attribute("aria-label", "removed noise")
    page.keyboard.press("d")
    expect(page.locator(".stage canvas")).to_have_attribute("aria-label", "original and denoised")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()


def test_work_is_shown_and_cancelled(browser):
    """A large image tells how far it is; cancelled, it can be tried again."""
    with serving("--model_path", WEIGHTS, "--max_megapixels", 4, "--tile", 352) as server:
        page = browser.new_page()
        page.goto(server.url)
        drop(page, {"large.png": images.encode("large.png", noisy_scene(800, 1000))})
        expect(page.locator("#state-text")).to_contain_text(re.compile(r"Denoising, \d+ %"))
        page.click("#cancel")
        expect(page.locator("#state-text")).to_have_text("Cancelled")
        wait_for(lambda: server.metrics()["denoise_queue"] == 0)
        page.click("#retry")
        expect(page.locator("#state-text")).to_contain_text("Denoising")
        page.get_by_role("button", name="Remove large.png").click(force=True)
        expect(page.get_by_text("Drop images or a folder here")).to_be_visible()
        wait_for(lambda: server.metrics()["denoise_queue"] == 0)
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_used_by_everyone(browser, server, scheme):
    """What axe finds of contrast, names and roles, on each state of the page and as wide as a phone: nothing."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    width = {"light": 1200, "dark": 390}[scheme]
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(server.url)

        def check(state):
            found = axe.Axe().run(page)
            assert found.violations_count == 0, (state, found.generate_report())

        check("empty")
        drop(page, {"a.png": images.encode("a.png", noisy_scene(90, 120)), "b.png": b"no image"})
        expect(page.locator("#strip .done")).to_have_count(1)
        expect(page.locator("#noise")).to_be_visible()
        check("done")
        page.locator("#strip .failed .thumb").click()
        check("failed")
        page.get_by_role("button", name="Keys").click()
        check("help")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
