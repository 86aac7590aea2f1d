r"""Denoises images with an exported model on Paddle Inference, ONNX Runtime or OpenVINO; measures speed and quality.

    python infer.py --model_file=output/model.pdmodel --params_file=output/model.pdiparams \
        --input_file=validation/BSD300/test --save_dir output/inference_img --batch_size=2 \
        --use_gpu=False --enable_mkldnn=True --cpu_threads=2 --precision=fp32 --enable_benchmark=True
    python infer.py --runtime=openvino --precision=int8 --model_file=output/model_int8.onnx \
        --input_file=demo/astronaut_noise.png --save_dir output/int8

It needs neither the training code nor the weights, and Paddle only if the model runs on Paddle: copy this file, the
folder denoising/, and what export_model.py or tools/quantize_model.py has written to another machine, and it runs
there. What is asked for is what runs: device, threads and precision are read back from the runtime, and a setting
that the runtime would silently replace is refused (docs/deployment.md).

Images of one size share a batch, unless too many others lie between them. None is padded to fit others, because that
would change its borders. Results are called NAME_denoise.png (NPY, TIFF and EXR keep their format), and an existing one
is replaced only with --overwrite. A network that was trained on undersampled MRI puts the known frequencies back into
its results. Reading and writing files is not part of the reported times.
"""

import contextlib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from denoising import cli, machine
from denoising.cli import UserError, boolean, number
from denoising.files import images, results
from denoising.imaging import metrics
from denoising.imaging.noise import list_of_noise, noise_of_flag
from denoising.imaging.pixels import Picture, from_01, to_01
from denoising.runtimes import batches, choice
from denoising.runtimes.autolog import BenchmarkLog

WAITING = 4  # batches: so much is in memory until there are enough images of one size


def get_parser():
    """The published flags under their published names, and ours."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("data").add_argument
    add("-i", "--input_file", help="an image, a folder (searched recursively), or a glob")
    add("--save_dir", help="folder for the results; without it, nothing is written")
    add("--overwrite", action="store_true", help="replace results that exist")
    add("--gt_dir", help="folder of clean images with the same names, against which PSNR and SSIM are computed")
    add("--noise", help=f"add noise first, and score results against the input: {list_of_noise()}")
    add("--seed", type=number(int, 0), default=0, help="seed of --noise")
    add("--json", action="store_true", help="print results as JSON, everything else to stderr")
    add("-b", "--batch_size", type=number(int, 1), default=1, help="images that run at once")
    choice.add_flags(parser)
    add = parser.add_argument_group("benchmark").add_argument
    add("--enable_benchmark", type=boolean, default=False, help="warm up first, and print AutoLog's report")
    add("--random_input", type=_shape, help="time random input of this shape instead of images, e.g. 1,3,256,256")
    add("--repeats", type=number(int, 1), default=20, help="batches of --random_input")
    return parser


def _shape(text):
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5}){3}", text):
        raise ValueError
    return tuple(map(int, text.split(",")))


def main(argv=None):
    """Checks everything, opens the model, runs it, and reports."""
    options = get_parser().parse_args(argv)
    noise = check_options(options)
    choice.find_model(options)
    jobs = [] if options.random_input else plan(options)
    if options.save_dir:
        cli.writable_folder("--save_dir", options.save_dir)

    runtime = choice.open_runtime(options)
    cli.note(runtime.describe())
    log = BenchmarkLog(
        runtime.name, options.precision, options.batch_size, "dynamic", runtime.facts,
        gpu_ids=0 if options.use_gpu else None, stream=sys.stderr if options.json else sys.stdout,
    )  # fmt: skip
    if options.random_input:
        log.data = {"batch_size": options.random_input[0], "input_shape": options.random_input}
        time_random_input(runtime, log.times, options)
    else:
        Runner(runtime, log.times, options, noise).run(jobs)
    report(jobs, log.times, runtime, options)
    if options.enable_benchmark and log.times.total:
        log.report()
    return 1 if any(job.error for job in jobs) else 0


# --- Checks ---------------------------------------------------------------------------------------


def check_options(options):
    """Refuses what would not run as asked, fills in defaults, and returns the noise to add, or None."""
    if bool(options.input_file) == bool(options.random_input):
        raise UserError("--input_file: give either images or --random_input")
    if options.random_input:
        parser = get_parser()
        for name in ("save_dir", "overwrite", "gt_dir", "noise", "batch_size"):
            changed = getattr(options, name) != parser.get_default(name)
            cli.refuse((changed, f"--{name}: is for images; --random_input gives the batch, and nothing is written"))
    if options.gt_dir:
        cli.existing_folder("--gt_dir", options.gt_dir)
    choice.check_flags(options)
    return None if options.noise is None else noise_of_flag("--noise", options.noise)


@dataclass
class Job:
    """One file on its way: noisy pages are float, denoised ones of the file's type."""

    index: int
    path: Path
    target: Path | None
    truth: Path | None
    picture: Picture | None = None
    denoised: dict = field(default_factory=dict)  # pages by number
    scores: dict = field(default_factory=dict)
    done: bool = False  # denoised and written, whatever becomes of its scores
    error: str | None = None


def plan(options):
    """The jobs in order, each with its truth; no result may be lost or replaced."""
    root = Path(options.input_file)
    paths = images.find_images("--input_file", options.input_file)
    targets = [None] * len(paths)
    if options.save_dir:
        targets = results.plan("--input_file", paths, root, options.save_dir, None, options.overwrite)
    jobs = []
    for path, target in zip(paths, targets, strict=True):
        name = path.relative_to(root) if root.is_dir() else Path(path.name)
        jobs.append(Job(len(jobs), path, target, _truth(options.gt_dir, name)))
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


def time_random_input(runtime, times, options):
    """Times batches of random numbers."""
    nchw_shape = options.random_input
    if nchw_shape[1] != runtime.channels:
        raise UserError(f"--random_input: the network takes {runtime.channels} channels")
    x = np.random.default_rng(options.seed).random(nchw_shape, dtype=np.float32)
    prepare(runtime, "--random_input", nchw_shape, options)
    for _ in cli.progress(range(options.repeats), unit="batch"):
        times.start()
        times.stamp()
        runtime(x)
        times.stamp()
        times.end(nchw_shape[0])


def prepare(runtime, source, nchw_shape, options):
    """Before the first batch of a size: warns of too little memory, and in a benchmark runs one that is not timed."""
    needed, free = (count / 2**30 for count in (runtime.bytes_for(nchw_shape), machine.free_memory()))
    if needed > free / 2:
        size = "x".join(map(str, nchw_shape))
        memory = f"takes about {needed:.1f} GiB, {free:.1f} are free"
        cli.note(f"{source}: {size} at once {memory}; predict.py works in tiles")
    if options.enable_benchmark:
        runtime(np.zeros(nchw_shape, np.float32))


class Runner:
    """Takes jobs through a runtime in batches of equal size."""

    def __init__(self, runtime, times, options, noise):
        self.runtime, self.times, self.options, self.noise = runtime, times, options, noise
        # What results keep of noisy images depends on the noise in them: that of --noise, or that of the training.
        noisetype = runtime.record.get("options", {}).get("noisetype")
        self.restorer = noise or noise_of_flag("--model_file", noisetype and str(noisetype))
        self.prepared = set()  # shapes of batches
        self.single = False  # whether there is only one file, whose error ends the run

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
                    elif sum(map(len, waiting.values())) > WAITING * self.options.batch_size:
                        self._run_batch(waiting.pop(next(iter(waiting))), bar)  # that which has waited longest
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
        takes = self.runtime.channels
        for channels in {page.shape[2] for page in picture.pages}:
            if takes not in (1, channels) and channels != 1:
                raise UserError(f"{job.path}: has {channels} channels, the network takes {takes}")
        job.picture = picture

    def _run_batch(self, batch, bar):
        batch = [(job, page) for job, page in batch if not job.error]
        if not batch:
            return
        jobs = [*{job.index: job for job, _ in batch}.values()]
        with self._reporting(*jobs):
            self._denoise(batch)
        for job in jobs:
            with self._reporting(job):
                if not job.error and len(job.denoised) == len(job.picture.pages):
                    self._finish(job)
            bar.update()

    def _denoise(self, batch):
        noisy = [self._noisy(job, page) for job, page in batch]
        nchw_shape = batches.nchw_shape(noisy, self.runtime.channels)
        if nchw_shape not in self.prepared:
            self.prepared.add(nchw_shape)
            prepare(self.runtime, batch[0][0].path, nchw_shape, self.options)
        self.times.start()
        x = batches.to_nchw([to_01(image) for image in noisy], self.runtime.channels)
        self.times.stamp()
        y = self.runtime(x)
        self.times.stamp()
        denoised = batches.from_nchw(y, noisy, self.runtime.channels)
        for (job, page), image, result in zip(batch, noisy, denoised, strict=True):
            if job.error:  # over another of its pages
                continue
            with self._reporting(job):  # alone: the others of its batch are none the worse for it
                if not np.isfinite(result).all():
                    raise UserError(f"{job.path}: the result holds NaN or infinite pixels")
                job.denoised[page] = from_01(self._restored(job, image, result), job.picture.pages[page].dtype)
        self.times.end(len(batch))

    def _noisy(self, job, page):
        array = job.picture.pages[page]
        if not self.noise:
            return array
        # By file and page, so that neither batch size nor order changes it; not clipped.
        return self.noise.add(to_01(array), np.random.default_rng([self.options.seed, job.index, page]))

    def _restored(self, job, noisy, denoised):
        try:
            return self.restorer.restore(noisy, denoised)
        except ValueError as error:
            raise UserError(f"{job.path}: {error}") from None

    def _finish(self, job):
        pages = [job.denoised[page] for page in range(len(job.denoised))]
        if job.target:
            cli.writable_folder("--save_dir", job.target.parent)
            images.write_image(job.target, pages, like=job.picture)
        job.done = True
        if job.truth or self.noise:
            truth = images.read_image(job.truth) if job.truth else job.picture
            job.scores = _scores(job, truth.pages, pages)
        job.picture, job.denoised = None, {}


def _scores(job, truth, pages):
    """Averages over the pages, in the truth's own type and range, as val.py scores 8 bits."""
    if [page.shape for page in truth] != [page.shape for page in pages]:
        raise UserError(f"--gt_dir: {job.truth} has another shape than {job.path}")
    scores = {"psnr": [], "ssim": []}
    for clean, page in zip(truth, pages, strict=True):
        data_range = np.iinfo(clean.dtype).max if clean.dtype.kind == "u" else 1.0
        image = from_01(to_01(page), clean.dtype)
        scores["psnr"].append(metrics.psnr(clean, image, data_range))
        if min(clean.shape[:2]) >= 11:
            scores["ssim"].append(metrics.ssim(clean, image, data_range))
    return {measure: float(np.mean(values)) for measure, values in scores.items() if values}


# --- Reporting ------------------------------------------------------------------------------------


def report(jobs, times, runtime, options):
    """Prints what was done, in the order of the input."""
    means = {}
    for measure in ("psnr", "ssim"):
        values = [job.scores[measure] for job in jobs if measure in job.scores]
        means |= {measure: float(np.mean(values))} if values else {}
    seconds = sum(times.total)
    if options.json:
        outcomes = [
            {"input": str(job.path), "output": job.target and str(job.target)} | _for_json(job.scores)
            | ({"error": job.error} if job.error else {}) for job in jobs
        ]  # fmt: skip
        numbers = {"mean": _for_json(means), "count": times.items, "seconds": seconds}
        print(json.dumps({"engine": runtime.facts, "images": outcomes, **numbers}, indent=2))
        return
    for job in jobs:
        scores = (f"{measure}: {value:.4f}" for measure, value in job.scores.items())
        if job.done:
            print(job.target or job.path, *scores, sep="  ")
    for measure, value in means.items():
        print(f"Metric {measure}: {value:.4f}")
    if times.items:
        print(f"{times.items} image(s), {1e3 * seconds / times.items:.1f} ms each")
    failed, unscored = (sum(job.error is not None and job.done is done for job in jobs) for done in (False, True))
    if failed:
        cli.note(f"{failed} of {len(jobs)} images could not be denoised")
    if unscored:
        cli.note(f"{unscored} of {len(jobs)} images were denoised, but not scored")


def _for_json(scores):
    """JSON knows no infinity, which is the PSNR of equal images."""
    return {measure: value if np.isfinite(value) else None for measure, value in scores.items()}


if __name__ == "__main__":
    cli.run(main)
