r"""Denoises images with an exported model on Paddle Inference, ONNX Runtime or OpenVINO; measures speed and quality.

    python infer.py --model_file=output/model.pdmodel --params_file=output/model.pdiparams \
        --input_file=validation/BSD300/test --save_dir output/inference_img --batch_size=2 \
        --use_gpu=False --enable_mkldnn=True --cpu_threads=2 --precision=fp32 --enable_benchmark=True
    python infer.py --runtime=openvino --precision=int8 --model_file=models/best_model_int8.onnx \
        --input_file=demo/astronaut_noise.png --save_dir output/int8

It needs neither the training code nor the checkpoint, and Paddle only to run on it: what travels is this file, the
folder denoising/, and what export_model.py or tools/quantize_model.py wrote. What is asked for is what runs: device,
threads and precision are read back from the runtime, and whatever it would replace in silence is refused
(docs/deployment.md).

Images of one size share a batch, whatever their order; none is padded to fit others, because that
would change its borders. Results are NAME_denoise.png (NPY and TIFF keep their format), and none
that exists is replaced without --overwrite. Reading and writing of files is not in the times.
"""

import contextlib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from denoising import cli
from denoising.cli import UserError, boolean, number
from denoising.files import images
from denoising.imaging import metrics
from denoising.imaging.noise import list_of_noise, parse_noise
from denoising.runtimes import paddle_inference
from denoising.runtimes.autolog import BenchmarkLog


def get_parser():
    """The published flags under their published names, and ours."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("data").add_argument
    add("-i", "--input_file", help="an image, a folder (searched recursively), or a glob")
    add("--save_dir", help="where results go; nothing is written without it")
    add("--overwrite", action="store_true", help="replace results that exist")
    add("--gt_dir", help="clean images of the same names: PSNR and SSIM are computed")
    add("--noise", help=f"added first; the input is the truth then: {list_of_noise()}")
    add("--seed", type=number(int, 0), default=0, help="of --noise")
    add("--json", action="store_true", help="print results as JSON, all else to stderr")
    add("-b", "--batch_size", type=number(int, 1), default=1, help="images run at once")
    paddle_inference.add_flags(parser)
    add = parser.add_argument_group("benchmark").add_argument
    add("--enable_benchmark", type=boolean, default=False, help="warm up; AutoLog's report")
    add("--random_input", type=_shape, help="time this instead of images, e.g. 1,3,256,256")
    add("--repeats", type=number(int, 1), default=20, help="batches of --random_input")
    return parser


def _shape(text):
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5}){3}", text):
        raise ValueError
    return tuple(map(int, text.split(",")))


def main(argv=None):
    """Checks everything, builds the engine, runs, and reports."""
    options = get_parser().parse_args(argv)
    noise = check_options(options)
    paddle_inference.find_model(options)
    jobs = [] if options.random_input else plan(options)
    if options.save_dir:
        cli.writable_folder("--save_dir", options.save_dir)

    engine = paddle_inference.open_engine(options)
    cli.note(engine.describe())
    log = BenchmarkLog(
        engine.name, options.precision, options.batch_size, "dynamic", engine.facts,
        gpu_ids=0 if options.use_gpu else None, stream=sys.stderr if options.json else sys.stdout,
    )  # fmt: skip
    runner = Runner(engine, log.times, options, noise)
    if options.random_input:
        log.data = {"batch_size": options.random_input[0], "input_shape": options.random_input}
        runner.run_random(options.random_input)
    else:
        runner.run(jobs)
    report(jobs, log.times, engine, options)
    if options.enable_benchmark and log.times.total:
        log.report()
    return 1 if any(job.error for job in jobs) else 0


# --- Checks ---------------------------------------------------------------------------------------


def check_options(options):
    """Refuses what would not run as asked, fills in defaults, and returns the noise model."""
    if bool(options.input_file) == bool(options.random_input):
        raise UserError("--input_file: give either images or --random_input")
    if options.gt_dir:
        cli.existing_folder("--gt_dir", options.gt_dir)
    paddle_inference.check_flags(options)
    try:
        return parse_noise(options.noise) if options.noise else None
    except ValueError as error:
        raise UserError(f"--noise: {error}") from None


@dataclass
class Job:
    """One file on its way: noisy pages are float, denoised ones of the file's type."""

    index: int
    path: Path
    target: Path | None
    truth: Path | None
    picture: images.Picture | None = None
    done: dict = field(default_factory=dict)  # denoised pages by number
    scores: dict = field(default_factory=dict)
    error: str | None = None


def plan(options):
    """The jobs in order, each with its truth; no result may be lost or replaced."""
    jobs, owner = [], {}
    root = Path(options.input_file)
    for path in images.find_images("--input_file", options.input_file):
        below = path.relative_to(root) if root.is_dir() else Path(path.name)
        # PNG holds 8 and 16 bits; what it cannot hold stays in its own format.
        keep = path.suffix.lower() in (".npy", ".tif", ".tiff", ".exr")
        name = f"{path.stem}_denoise{path.suffix if keep else '.png'}"
        target = Path(options.save_dir) / below.with_name(name) if options.save_dir else None
        if target in owner:
            raise UserError(f"--input_file: {owner[target]} and {path} would be one {target}")
        if target:
            owner[target] = path
        if target and target.exists() and not options.overwrite:
            raise UserError(f"--save_dir: {target} exists; --overwrite replaces it")
        jobs.append(Job(len(jobs), path, target, _truth(options.gt_dir, below)))
    return jobs


def _truth(folder, name):
    """The clean image of this name, of any format."""
    if not folder:
        return None
    same = Path(folder) / name
    if same.is_file():
        return same
    for path in sorted(same.parent.iterdir()) if same.parent.is_dir() else ():
        if path.stem == same.stem and path.suffix.lower() in images.IMAGE_SUFFIXES:
            return path
    raise UserError(f"--gt_dir: {folder} has no {name}")


# --- Running --------------------------------------------------------------------------------------


class Runner:
    """Takes jobs through an engine in batches of equal size."""

    def __init__(self, engine, times, options, noise):
        self.engine, self.times, self.options, self.noise = engine, times, options, noise
        self.seen, self.single = set(), False

    def run_random(self, nchw_shape):
        """Times random input."""
        if nchw_shape[1] != self.engine.channels:
            raise UserError(f"--random_input: the network takes {self.engine.channels} channels")
        x = np.random.default_rng(self.options.seed).random(nchw_shape, dtype=np.float32)
        self._prepare("--random_input", nchw_shape)
        for _ in cli.progress(range(self.options.repeats), unit="batch"):
            self.times.start()
            self.times.stamp()
            self.engine(x)
            self.times.stamp()
            self.times.end(stamp=True, items=nchw_shape[0])

    def run(self, jobs):
        """Runs all; a file that fails is reported and the rest goes on, unless it is the only one."""
        self.single = len(jobs) == 1
        waiting = {}
        with cli.progress(total=len(jobs), unit="image", disable=self.single) as bar:
            for job in jobs:
                with self._reporting(job):
                    self._load(job)
                pages = job.picture.pages if job.picture else ()
                for page, array in enumerate(pages):
                    batch = waiting.setdefault(array.shape, [])
                    batch.append((job, page))
                    if len(batch) == self.options.batch_size:
                        self._run_batch(waiting.pop(array.shape), bar)
            for batch in waiting.values():
                self._run_batch(batch, bar)

    @contextlib.contextmanager
    def _reporting(self, *jobs):
        try:
            yield
        except UserError as error:
            if self.single:
                raise
            cli.note(error)
            for job in jobs:
                job.error, job.picture = str(error), None

    def _load(self, job):
        picture = images.read_image(job.path)
        takes = self.engine.channels
        for channels in {page.shape[2] for page in picture.pages}:
            if takes not in (1, channels) and channels != 1:
                raise UserError(f"{job.path}: has {channels} channels, the network takes {takes}")
        job.picture = picture

    def _prepare(self, path, nchw_shape):
        """Before the first run of a size: in a benchmark one that is not timed, and a word on memory."""
        if nchw_shape in self.seen:
            return
        self.seen.add(nchw_shape)
        needed, free = self.engine.bytes_for(nchw_shape) / 2**30, _free_gib()
        if needed > free / 2:
            size = "x".join(map(str, nchw_shape))
            cli.note(
                f"{path}: {size} at once takes about {needed:.1f} GiB, {free:.1f} are free; predict.py works in tiles"
            )
        if self.options.enable_benchmark:
            self.engine(np.zeros(nchw_shape, np.float32))

    def _run_batch(self, batch, bar):
        batch = [(job, page) for job, page in batch if not job.error]
        if not batch:
            return
        with self._reporting(*(job for job, _ in batch)):
            self._denoise(batch)
        for job in {job.index: job for job, _ in batch}.values():
            if not job.error and len(job.done) == len(job.picture.pages):
                with self._reporting(job):
                    self._finish(job)
            bar.update()

    def _denoise(self, batch):
        height, width, channels = batch[0][0].picture.pages[batch[0][1]].shape
        # A grey network takes each channel as an image of its own; a colour one takes grey three times.
        takes = self.engine.channels
        each = channels if takes == 1 else 1
        nchw_shape = (len(batch) * each, takes, height, width)
        self._prepare(batch[0][0].path, nchw_shape)
        inputs = [self._input(job, page) for job, page in batch]
        self.times.start()
        x = np.stack([images.to_01(image) for image in inputs]).transpose(0, 3, 1, 2)
        x = np.broadcast_to(x.reshape(len(batch) * each, -1, height, width), nchw_shape)
        x = np.ascontiguousarray(x)
        self.times.stamp()
        y = self.engine(x)
        self.times.stamp()
        if not np.isfinite(y).all():
            names = ", ".join(str(job.path) for job, _ in batch)
            raise UserError(f"{names}: the result holds NaN or infinite pixels")
        if channels < takes:
            y = y.mean(axis=1, keepdims=True)
        # As many as went in, unless the network makes an image of a render and its buffers.
        gives = channels if takes == 1 or channels < takes else y.shape[1]
        y = y.reshape(len(batch), gives, height, width).transpose(0, 2, 3, 1)
        for (job, page), image, result in zip(batch, inputs, y, strict=True):
            result = self.noise.restore(image, result) if self.noise else result
            job.done[page] = images.from_01(result, job.picture.pages[page].dtype)
        self.times.end(stamp=True, items=len(batch))

    def _input(self, job, page):
        array = job.picture.pages[page]
        if not self.noise:
            return array
        # By file and page, so that neither batch size nor order changes it; not clipped.
        return self.noise.add(images.to_01(array), np.random.default_rng([self.options.seed, job.index, page]))

    def _finish(self, job):
        pages = [job.done[page] for page in range(len(job.done))]
        if job.truth or self.noise:
            truth = images.read_image(job.truth) if job.truth else job.picture
            job.scores = _scores(job, truth.pages, pages)
        if job.target:
            cli.writable_folder("--save_dir", job.target.parent)
            images.write_image(job.target, pages, like=job.picture)
        job.picture, job.done = None, {}


def _scores(job, truth, pages):
    """Averages over the pages, in the truth's own type and range, as val.py scores 8 bits."""
    if [page.shape for page in truth] != [page.shape for page in pages]:
        raise UserError(f"--gt_dir: {job.truth} has another shape than {job.path}")
    scores = {"psnr": [], "ssim": []}
    for clean, page in zip(truth, pages, strict=True):
        data_range = np.iinfo(clean.dtype).max if clean.dtype.kind == "u" else 1.0
        image = images.from_01(images.to_01(page), clean.dtype)
        scores["psnr"].append(metrics.psnr(clean, image, data_range))
        if min(clean.shape[:2]) >= 11:
            scores["ssim"].append(metrics.ssim(clean, image, data_range))
    return {measure: float(np.mean(values)) for measure, values in scores.items() if values}


def _free_gib():
    """What the machine has left; where it does not tell, enough."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo") as file:
        return next(int(line.split()[1]) / 2**20 for line in file if line.startswith("MemAvailable"))
    return float("inf")


# --- Reporting ------------------------------------------------------------------------------------


def report(jobs, times, engine, options):
    """Prints what was done, in the order of the input."""
    means = {}
    for measure in ("psnr", "ssim"):
        values = [job.scores[measure] for job in jobs if measure in job.scores]
        means |= {measure: float(np.mean(values))} if values else {}
    seconds = sum(times.total)
    if options.json:
        results = [
            {"input": str(job.path), "output": job.target and str(job.target)} | job.scores
            | ({"error": job.error} if job.error else {}) for job in jobs
        ]  # fmt: skip
        numbers = {"mean": means, "count": times.items, "seconds": seconds}
        print(json.dumps({"engine": engine.facts, "images": results, **numbers}, indent=2))
        return
    for job in jobs:
        scores = (f"{measure}: {value:.4f}" for measure, value in job.scores.items())
        if not job.error:
            print(job.target or job.path, *scores, sep="  ")
    for measure, value in means.items():
        print(f"Metric {measure}: {value:.4f}")
    if times.items:
        print(f"{times.items} image(s), {1e3 * seconds / times.items:.1f} ms each")
    failed = sum(job.error is not None for job in jobs)
    if failed:
        cli.note(f"{failed} of {len(jobs)} images could not be denoised")


if __name__ == "__main__":
    cli.run(main)
