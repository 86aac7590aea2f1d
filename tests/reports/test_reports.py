"""Are the files what they claim to be, also after a kill and with hostile names?"""

import glob
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from denoising import cli
from denoising.inference.evaluation import Score, SetScores
from denoising.reports import modules, plots, run_log, scores
from denoising.reports.page import HtmlReport
from denoising.reports.run_log import RunLog


def events(folder):
    """(step, tag, value or image) of each event, purged as TensorBoard purges."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    kept = []
    for path in sorted(glob.glob(f"{glob.escape(str(folder))}/*tfevents*")):
        with open(path, "rb") as file:
            data = file.read()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                kept = [known for known in kept if known[0] < event.step]
            for value in event.summary.value:
                image = value.image.encoded_image_string
                kept.append((event.step, value.tag, image or value.simple_value))
    return kept


def series(folder, tag):
    return [(step, round(value, 6)) for step, name, value in events(folder) if name == tag]


def test_run_log_leaves_log_csv_and_events(tmp_path, capsys):
    with RunLog(tmp_path) as log:
        log.line("0001 00010 Loss1=0.5, größer")
        log.scalars(10, {"train/loss": np.float32(0.1), "a,b": 2})
        log.image("val/0", np.full((4, 5, 3), 7, np.uint8), 10)
        log.image("val/grey", np.full((4, 5), 7, np.uint8), 10)
    assert capsys.readouterr().out == "0001 00010 Loss1=0.5, größer\n"
    assert (tmp_path / "train.log").read_text("utf-8") == "0001 00010 Loss1=0.5, größer\n"
    assert (tmp_path / "metrics.csv").read_text() == ('step,name,value\n10,train/loss,0.100000001\n10,"a,b",2\n')
    assert run_log.read_metrics(tmp_path) == {"train/loss": [(10, 0.100000001)], "a,b": [(10, 2.0)]}
    read = {tag: value for _, tag, value in events(tmp_path)}
    assert read["train/loss"] == pytest.approx(0.1)
    for tag in ("val/0", "val/grey"):
        image = cv2.imdecode(np.frombuffer(read[tag], np.uint8), cv2.IMREAD_UNCHANGED)
        assert image.shape == (4, 5, 3)
        assert (image == 7).all()


def test_events_load_in_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resume_at, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        with RunLog(tmp_path, resume_at) as log:
            for step in steps:
                log.scalars(step, {"loss": step})
    loaded = accumulator.EventAccumulator(str(tmp_path))
    loaded.Reload()
    assert [(event.step, event.value) for event in loaded.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_everything_is_on_disk_without_close(tmp_path):
    log = RunLog(tmp_path)
    log.line("a line")
    log.scalars(1, {"loss": 0.5})
    assert (tmp_path / "train.log").read_text() == "a line\n"
    assert run_log.read_metrics(tmp_path) == {"loss": [(1, 0.5)]}
    assert series(tmp_path, "loss") == [(1, 0.5)]
    log.close()


def test_resumed_files_read_as_if_never_interrupted(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    with RunLog(whole) as log:
        for step in range(1, 7):
            log.scalars(step, {"loss": 1 / step})
    with RunLog(killed) as log:
        for step in range(1, 6):
            log.scalars(step, {"loss": 1 / step if step < 4 else 99})
    with open(killed / "metrics.csv", "a") as file:
        file.write("5,lo")
    with RunLog(killed, resume_at=3) as log:
        for step in range(4, 7):
            log.scalars(step, {"loss": 1 / step})
    assert (killed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert series(killed, "loss") == series(whole, "loss")


def test_a_new_run_starts_an_empty_csv_and_resume_needs_none(tmp_path):
    RunLog(tmp_path, resume_at=7).close()
    assert (tmp_path / "metrics.csv").read_text() == "step,name,value\n"


def test_disabled_log_does_nothing(tmp_path, capsys):
    with RunLog(tmp_path / "absent", enabled=False) as log:
        log.line("text")
        log.scalars(1, {"loss": 1})
        log.image("image", np.zeros((2, 2, 3), np.uint8), 1)
    assert not (tmp_path / "absent").exists()
    assert capsys.readouterr().out == ""


def test_append_score_replaces_the_line_of_an_epoch(tmp_path):
    for epoch, psnr in ((1, 28.5), (2, 29.0), (10, 29.75), (2, 29.25)):
        run_log.append_score(tmp_path, "BSD300", epoch, psnr, 0.8)
    assert (tmp_path / "A_log_BSD300.csv").read_text() == "1,28.5,0.8\n2,29.25,0.8\n10,29.75,0.8\n"
    run_log.append_score(tmp_path, "../a/b", 1, 28.5, 0.8)
    assert (tmp_path / "A_log_.._a_b.csv").exists()


@pytest.mark.parametrize("count", [0, 1, 5, 500])
def test_plot_curves_draws_a_png(tmp_path, count):
    points = [(step, 10.0 / (1 + step)) for step in range(count)]
    odd = [(0, float("nan")), (1, float("inf")), (2, 1.0)]
    panels = {"loss": {"train/loss": points, "$\\frac_中": odd}, "PSNR [dB]": {"_set": points}}
    path = tmp_path / "loss.png"
    plots.plot_curves(path, "results/$unet_25", "step", panels)
    assert cv2.imread(str(path)).shape == (852, 960, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def set_scores(name, scores):
    return SetScores(name, scores, seconds=1.25, megapixels=0.1)


def score(set_name, name, repeat=0, psnr=30.0, ssim=0.75, psnr_noisy=20.0, ssim_noisy=0.5, index=0, number=None):
    number = index if number is None else number
    return Score(set_name, name, index, number, repeat, psnr, ssim, psnr_noisy, ssim_noisy)


def test_score_table_and_summary():
    results = [
        set_scores("BSD300", [score("BSD300", f"{n}", r, index=n) for r in range(3) for n in range(100)]),
        set_scores("mine", [score("mine", "a", psnr=float("inf"), ssim=1.0)]),
    ]
    table = scores.score_table(results).splitlines()
    assert table[0].split() == ["set", "images", "noisy", "PSNR", "PSNR", "gain", "SSIM"]
    assert table[1].split() == ["BSD300", "100", "x", "3", "20.00", "30.00", "+10.00", "0.7500"]
    assert table[2].split() == ["mine", "1", "x", "1", "20.00", "inf", "+inf", "1.0000"]
    assert len({len(line) for line in table}) == 1
    summary = scores.score_summary(results)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary[0] == {
        "set": "BSD300",
        "images": 100,
        "repeats": 3,
        "psnr_noisy": 20.0,
        "ssim_noisy": 0.5,
        "psnr": 30.0,
        "ssim": 0.75,
        "seconds": 1.25,
    }
    assert summary[1]["psnr"] is None


def test_plot_run_draws_what_was_recorded(tmp_path):
    with RunLog(tmp_path) as log:
        for step in range(1, 50):
            log.scalars(step, {"loss/rec": 1 / step, "loss/reg": 0.0, "schedule/lr": 0.1})
    plots.plot_run(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"loss.png"}
    with RunLog(tmp_path, resume_at=49) as log:
        log.scalars(49, {"psnr/BSD300": 30.0, "ssim/BSD300": 0.8})
    plots.plot_run(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"loss.png", "psnr.png"}


def test_a_plot_says_what_decibels_without_clean_images_are(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "plot_curves", lambda path, title, x_label, panels: drawn.append(list(panels)))
    with RunLog(tmp_path) as log:
        log.scalars(1, {"psnr/another_frame": 20.0})
    plots.plot_run(tmp_path)
    assert drawn == [["PSNR [dB] against another noisy frame"]]  # and no empty panel for SSIM
    with RunLog(tmp_path, resume_at=1) as log:
        log.scalars(1, {"psnr/BSD300": 30.0, "ssim/BSD300": 0.8})
    plots.plot_run(tmp_path)
    assert drawn[1] == ["PSNR [dB]", "SSIM"]


# --- The HTML report ------------------------------------------------------------------------------

HOSTILE = [
    "</script><script>alert(1)</script>.png",
    "\"><img src=x onerror='alert(1)'>.png",
    "../../etc/{{title}}.png",
    "ab\u202egnp.exe\n\0.png",
    "写真 é.png",
    "\udcff.png",  # how Python names a file whose bytes are no UTF-8
    "twice.png",
    "twice.png",
]


def picture(seed, height=40, width=60, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def report(tmp_path):
    """A page with a hostile set, a grey one of three repeats, and one without pictures."""
    page = HtmlReport(tmp_path / "report", "A & B", {"model": "<x>", "Versions": {"numpy": "2"}}, pictures=10)
    results, first = [], 0
    for set_name, names, repeats, channels in (
        ("<b>&'\"", HOSTILE, 1, 3),
        ("grey", [f"{n}.png" for n in range(12)], 3, 1),
    ):
        scores = []
        for repeat in range(repeats):
            for n, name in enumerate(names):
                scores.append(score(set_name, name, repeat, psnr=30.0 + n + repeat, index=n, number=first + n))
                images = [picture(10 * n + k, channels=channels) for k in range(3)]
                page.add(scores[-1], *images)
        first += len(names)
        results.append(set_scores(set_name, scores))
    bare = [score("bare", f"{n}", psnr=psnr, index=n) for n, psnr in enumerate((float("inf"), float("nan")))]
    results.append(set_scores("bare", bare))
    return page.close(results)


class Page(HTMLParser):
    """Parses strictly: what is opened is closed, in order."""

    VOID = frozenset(("meta", "link", "img", "input"))

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        with open(path, encoding="utf-8") as file:
            self.feed(file.read())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, wanted, **attributes):
        return [found for tag, found in self.tags if tag == wanted and attributes.items() <= found.items()]


def test_page_holds_all_images_and_needs_nothing_else(report):
    page, folder = Page(report), os.path.dirname(report)
    assert len(page.all("tbody")) == 1 + len(HOSTILE) + 12 + 2
    # Ten pictures of a set at most, of the first repeat.
    assert len(page.all("div", **{"class": "figures"})) == len(HOSTILE) + 10
    sources = [image["src"] for image in page.all("img")]
    assert len(sources) == 4 * (len(HOSTILE) + 10)
    assert {image["loading"] for image in page.all("img")} == {"lazy"}
    assert sorted([*set(sources), "index.html"]) == sorted(os.listdir(folder))
    assert {"00000-input.png", "00000-label.png", "00000-output.png"} < set(sources)
    for tag, attributes in page.tags:
        for name in ("src", "href", "data-noisy", "data-denoised", "data-clean", "data-residual"):
            address = attributes.get(name)
            assert address is None or address == "data:," or address[0] == "#" or address in sources, tag
    with open(report, encoding="utf-8") as file:
        assert not re.search(r"//\w", file.read())


def test_names_are_shown_and_do_nothing(report):
    page = Page(report)
    assert len(page.all("script")) == 1
    assert not [tag for tag, attributes in page.tags if any(name[:2] == "on" for name in attributes)]
    names = [body["data-name"] for body in page.all("tbody")[1 : 1 + len(HOSTILE)]]
    assert names[:3] == HOSTILE[:3]
    assert names[3:] == ["ab\ufffdgnp.exe\ufffd\ufffd.png", "写真 é.png", "\ufffd.png", *HOSTILE[6:]]
    text = "".join(page.text)
    for words in ("A & B", "<x>", "Versions", "×4 around grey", "12 × 3", "+16.50"):
        assert words in text, words


def test_scores_of_the_page_are_means_over_repeats(report):
    bodies = {body["data-name"]: body for body in Page(report).all("tbody", **{"data-set": "grey"})}
    assert float(bodies["4.png"]["data-psnr"]) == 30 + 4 + 1
    assert float(bodies["4.png"]["data-gain"]) == 15
    bare = Page(report).all("tbody", **{"data-set": "bare"})
    assert [body["data-psnr"] for body in bare] == ["Infinity", ""]


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_pictures_are_the_pixels(tmp_path, channels):
    shape = (40, 60) if channels is None else (40, 60, channels)
    clean, noisy, denoised = (picture(n, channels=channels or 1).reshape(shape) for n in range(3))
    page = HtmlReport(tmp_path, "title", {})
    page.add(score("set", "a"), clean, noisy, denoised)
    page.add(score("set", "b", index=1), None, noisy, denoised)

    def read(name):
        image = cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED)
        return image[..., ::-1] if image.ndim == 3 else image.reshape(shape)

    for kind, image in (("label", clean), ("input", noisy), ("output", denoised)):
        assert (read(f"00000-{kind}.png") == image).all()
    error = denoised.astype(int) - clean
    assert (read("00000-residual.png") == np.clip(128 + 4 * error, 0, 255)).all()
    removed = noisy.astype(int) - denoised
    assert (read("00001-residual.png") == np.clip(128 + 2 * removed, 0, 255)).all()
    assert not (tmp_path / "00001-label.png").exists()
    text = Path(page.close([set_scores("set", [score("set", "a"), score("set", "b", index=1)])])).read_text()
    assert [text.count(f"{words}, ×") for words in ("denoised − clean", "noisy − denoised")] == [1, 1]
    assert 'width="60" height="40"' in text


def test_packed_raw_is_shown_in_grey(tmp_path):
    raw = picture(1, channels=4)
    HtmlReport(tmp_path, "title", {}).add(score("set", "a"), raw, raw, raw)
    shown = cv2.imread(str(tmp_path / "00000-input.png"), cv2.IMREAD_UNCHANGED)
    assert (shown == raw.mean(axis=2).astype(np.uint8)).all()


def test_a_report_is_replaced_only_when_asked(tmp_path):
    def write(names, **options):
        page = HtmlReport(tmp_path, "title", {}, **options)
        scores = [score("set", name, index=n) for n, name in enumerate(names)]
        for image_score in scores:
            page.add(image_score, picture(1), picture(2), picture(3))
        return page.close([set_scores("set", scores)])

    write(["first", "second"])
    (tmp_path / "mine.png").write_bytes(b"")
    before = (tmp_path / "index.html").read_bytes()
    with pytest.raises(cli.UserError, match="--report: .*index.html exists; --overwrite"):
        write(["third"])
    assert (tmp_path / "index.html").read_bytes() == before
    write(["third"], overwrite=True)
    assert "third" in (tmp_path / "index.html").read_text("utf-8")
    pictures = [f"00000-{kind}.png" for kind in ("input", "label", "output", "residual")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*pictures, "index.html", "mine.png"]
    # What a killed run has left is not taken for free either.
    (tmp_path / "index.html").unlink()
    with pytest.raises(cli.UserError, match="00000-input.png exists"):
        write(["fourth"])


def test_a_run_has_the_page_of_its_latest_snapshot(tmp_path):
    folder = tmp_path / "name" / "time"
    folder.mkdir(parents=True)
    cli.write_json(folder / "options.json", {"options": {"lr": 0.125}, "versions": {"paddle": "3"}})
    for epoch, images in ((1, 3), (2, 2)):
        page = run_log.run_page(folder, epoch, 5, first=True)
        scores = [score("set", f"{n}.png", index=n) for n in range(images)]
        for image_score in scores:
            page.add(image_score, picture(1), picture(2), picture(3))
        page.close([set_scores("set", scores)])
    text = (folder / "validation" / "index.html").read_text("utf-8")
    for words in ("name, epoch 2", "<dt>lr</dt><dd>0.125</dd>", "<dt>paddle</dt><dd>3</dd>", "1.png"):
        assert words in text, words
    assert "2.png" not in text
    assert not (folder / "validation" / "00002-input.png").exists()


def test_modules_become_one(tmp_path):
    """Each once, after what it imports."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.js").write_text("export const base = 1;\n")
    (tmp_path / "sub" / "half.js").write_text('import { base } from "../base.js";\n\nexport function half() {}\n')
    (tmp_path / "all.js").write_text(
        'import { half } from "./sub/half.js";\nimport { base } from "./base.js";\nhalf();\n'
    )
    lines = [line for line in modules.joined(tmp_path / "all.js").splitlines() if line]
    assert lines == ["const base = 1;", "function half() {}", "half();"]


def browse(report, view, *arguments):
    """The page as Chromium has it after its script ran, and what that complained about."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("Chromium is not installed")
    with tempfile.TemporaryDirectory() as profile:
        run = subprocess.run(
            [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
             "--hide-scrollbars", "--virtual-time-budget=2000", f"--user-data-dir={profile}",
             *arguments, "--dump-dom", Path(report).as_uri() + view],
            capture_output=True, text=True, encoding="utf-8", timeout=60,
        )  # fmt: skip
    complaints = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    return run.stdout, complaints


def test_page_sorts_and_filters_in_a_browser(report, tmp_path):
    dom, complaints = browse(report, "#sort=psnr&down=&set=grey")
    assert complaints == []
    (tmp_path / "dom.html").write_text(dom, encoding="utf-8")
    page = Page(tmp_path / "dom.html")
    bodies = page.all("tbody")[1:]
    numbers = [float(body["data-psnr"] or "-inf") for body in bodies]
    assert numbers == sorted(numbers, reverse=True)
    assert {body["data-set"] for body in bodies if "hidden" not in body} == {"grey"}
    assert len(page.all("th", **{"aria-sort": "descending"})) == 1


def test_an_image_opens_in_the_viewer(report, tmp_path):
    """The view that an address asks for: one image, two of its pictures, and where they are divided."""
    view = f"#open=image-{len(HOSTILE)}&at=49&pair=denoised+clean"
    dom, complaints = browse(report, view)
    assert complaints == []
    assert '<h2 id="closer-name">0.png</h2>' in dom
    assert '<div class="line" style="left: 49%;">' in dom
    assert 'aria-label="denoised and clean"' in dom
    browse(report, view, "--window-size=800,600", f"--screenshot={tmp_path / 'page.png'}")
    screenshot = cv2.imread(str(tmp_path / "page.png"))
    folder = os.path.dirname(report)
    # It is shown twice as large, in squares, in the middle: denoised left of the line, and clean right of it.
    for kind, part in (("output", np.s_[:, :30]), ("label", np.s_[:, -40:])):
        pixels = cv2.imread(os.path.join(folder, f"{len(HOSTILE):05d}-{kind}.png"))
        squares = cv2.resize(pixels, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)[part]
        assert cv2.matchTemplate(screenshot, squares, cv2.TM_SQDIFF).min() / squares.size < 1, kind


def test_pictures_are_painted_in_a_browser(report, tmp_path):
    browse(report, "#set=grey", "--window-size=1000,1200", f"--screenshot={tmp_path / 'page.png'}")
    screenshot = cv2.imread(str(tmp_path / "page.png"))
    clean = cv2.imread(os.path.join(os.path.dirname(report), f"{len(HOSTILE):05d}-label.png"))
    error = cv2.matchTemplate(screenshot, clean, cv2.TM_SQDIFF).min() / clean.size
    assert error < 1  # the picture is there, pixel for pixel
