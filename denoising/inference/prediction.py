"""The steps of predict.py and of the command `denoise`: flags, plan, weights, one image after the other, report."""

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from denoising import cli, machine
from denoising.cli import UserError, number
from denoising.data import renders
from denoising.files import images, raw, results
from denoising.imaging.noise import NoiseModel, noise_of_flag
from denoising.inference import auto, devices, distributed, raw_prediction
from denoising.inference.checkpoint import load_network
from denoising.inference.denoiser import Denoiser, finite, needs_fp32

LONG = 60.0  # seconds that an image still takes, after which a shorter way is told


def get_parser(doc):
    """The published flags under their published names, and ours."""
    # fmt: off
    parser = cli.Parser(doc)
    add = parser.add_argument
    add("--image_path", required=True,
        help="an image, a raw file (docs/predicting.md), a folder (searched recursively), or a glob")
    add("--model_path", default="auto",
        help="the .pdparams weights; auto measures the noise of each image and takes those that ship for it")
    add("--fast", action="store_true", help="with auto: light weights where there are some, several times as fast")
    add("--save_dir", default="./output/", help="where results go; created if needed")
    add("--keep_format", action="store_true",
        help="write each image in its own format, not PNG; raw files as DNG, not TIFF")
    add("--strength", type=number(float, 0, 1), default=1.0, help="0 keeps the input, 1 the full effect")
    add("--detail", type=number(float, 0, 1), default=0.0,
        help="how much of the fine texture that went with the noise is given back")
    add("--chroma", type=number(float, 0, 1), default=1.0,
        help="how much of the colour noise is removed, apart from brightness")
    devices.add_window_flags(parser)
    add("--adapt", type=number(float, 0.01), metavar="MINUTES",
        help="go on training from the weights on these very images first, for so long (0.5 does for one image), and "
        "use what is estimated to be better (docs/predicting.md)")
    add("--adapt_steps", type=number(int, 1), metavar="N", help="the same for so many steps, which can be repeated")
    add("--save_adapted", metavar="FILE", help="with --adapt: where to keep the weights, if they are better")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of the randomness of --adapt")
    add("--overwrite", action="store_true", help="replace results that exist")
    add("--report", metavar="DIR",
        help="a page that says of each image how much of its noise went, and what structure with it (docs/trust.md); "
        "takes two more passes; with --skip_existing it is about the images of this run")
    add("--skip_existing", action="store_true", help="leave out images whose results exist: a batch is continued")
    devices.add_flags(parser, devices.FASTEST)
    return parser


def plan(options):
    """Finds the images and says where each result goes, before any slow step.

    Where they are renders, `options.model_path` becomes the path of the weights that ship for these, if it is auto.

    Returns:
        For each image the files that it is read from (one; or the three buffers of a render) and the result's path.
    """
    root, own = Path(options.image_path), options.model_path != "auto"
    of_renders = renders.is_folder(root)
    if of_renders:
        sources, root = renders.find_frames("--image_path", root), root / "render"
    else:
        # The report of an earlier run may lie among the images.
        flags = "--image_path", root, images.IMAGE_SUFFIXES + raw.SUFFIXES, results.report_files(options.report or "")
        sources = [[path] for path in images.find_images(*flags)]
    chosen_for_renders = not own and (of_renders or renders.are_frames([path for path, *_ in sources]))
    plain = (options.detail, options.chroma) == (0, 1)
    _check_adapting(options)
    cli.refuse(
        (options.skip_existing and options.overwrite, "--skip_existing: it keeps what --overwrite replaces: give one"),
        (options.fast and own, "--fast: chooses among the weights that ship, without --model_path"),
        (options.fast and chosen_for_renders, "--fast: is for images, not for renders"),
        (chosen_for_renders and not plain, "--detail, --chroma: are for images, not for renders"),
    )
    if not of_renders:
        raw_prediction.check(options, [path for (path,) in sources])
    if own:
        cli.existing_file("--model_path", options.model_path)
    elif chosen_for_renders:
        options.model_path = str(auto.weights_for_renders())
    else:
        auto.shipped_weights()
    firsts, others = [files[0] for files in sources], [path for files in sources for path in files[1:]]
    flags = options.save_dir, options.keep_format, options.overwrite
    targets = results.plan("--image_path", firsts, root, *flags, others, options.skip_existing)
    if options.save_adapted:
        cli.writable_folder("--save_adapted", Path(options.save_adapted).parent)
    cli.writable_folder("--save_dir", options.save_dir)
    planned = [pair for pair in zip(sources, targets, strict=True) if pair[1] is not None]
    if len(planned) < len(sources) and distributed.IS_MAIN:
        cli.note(f"{len(sources) - len(planned)} of {len(sources)} images have their results already")
    return planned


def adapted_from(path, saved):
    """Where adapted weights are kept, as --save_adapted says, if there are some of several origins."""
    return saved.with_stem(f"{saved.stem}_{path.stem}")


def _check_adapting(options):
    """Refuses what --adapt cannot do, before any slow step."""
    adapts = options.adapt is not None or options.adapt_steps is not None
    saved = Path(options.save_adapted or "")
    cli.refuse(
        (options.adapt and options.adapt_steps, "--adapt_steps: takes the place of --adapt: give one"),
        (options.save_adapted and not adapts, "--save_adapted: needs --adapt"),
        (options.save_adapted and saved.suffix != ".pdparams", "--save_adapted: the name of a .pdparams file"),
    )
    if options.save_adapted and not options.overwrite:
        origins = auto.shipped_weights() if options.model_path == "auto" else []
        there = next(filter(Path.exists, (saved, *(adapted_from(path, saved) for path in origins))), None)
        cli.refuse((there, f"--save_adapted: {there} exists; --overwrite replaces it"))
    own = Path("" if options.model_path == "auto" else options.model_path)
    cli.refuse(
        (adapts and options.model_path != "auto" and own.exists() and own.suffix not in (".pdparams", ".pth"),
         f"--adapt: {own} is no .pdparams or .pth file; a model that has been exported cannot be trained further"),
        (adapts and distributed.WORLD_SIZE > 1, "--adapt: works in one process; adapt once and keep the weights"),
    )  # fmt: skip


# --- Weights ------------------------------------------------------------------------------------------------


@dataclass
class Taken:
    """What is taken for an image."""

    denoiser: Denoiser | None  # None: it has no noise
    # `span` and `bounded` of the Denoiser, for each page; None: it has no noise. Empty: they are the same for all.
    spans: tuple = ()
    noise: NoiseModel | None = None  # that the network was trained on, which may know pixels that are to be kept
    why: str = ""  # it was taken, where it had to be chosen
    light: str | None = None  # what --fast would take instead

    def at(self, number):
        """The Denoiser, ready for the page of that number; None if it stays as it is."""
        if self.spans and self.spans[number] is None:
            return None
        if self.spans:
            self.denoiser.span, self.denoiser.bounded = self.spans[number]
        return self.denoiser

    @property
    def first(self):
        """The number of the first page that is denoised."""
        return next((number for number, span in enumerate(self.spans) if span), 0)


class OneForAll:
    """The weights that --model_path names, for every image."""

    prepare = None  # takes a page, and returns what is denoised in its place and a line about it, or ""
    by_noise = False  # whether the weights, and what they see as black and white, follow from each image

    def __init__(self, options):
        flag = f"--model_path: {options.model_path}"
        network, saved = load_network(options.model_path)
        self.network = network
        noise = noise_of_flag(flag, saved.get("noisetype", "none"))
        self.of_renders = network.n_input == renders.N_INPUT
        self.needs_buffers = network.needs_buffers
        cli.refuse(
            (not network.takes_images and (options.detail, options.chroma) != (0, 1),
             f"--detail, --chroma: are for images, and {options.model_path} is for renders or raw files")
        )  # fmt: skip
        if renders.is_folder(options.image_path) and not self.of_renders:
            raise UserError(f"{flag} takes images, {options.image_path} holds renders")
        if options.precision == "auto" and needs_fp32(network, saved):
            options.precision = "fp32"
        self.ops = network.ops = devices.prepare(options)
        self.path, self.amounts = Path(options.model_path), _amounts(options)
        self.together = {}  # files of further renders of a view, by the first one's first file
        self.taken = Taken(Denoiser(network, **self.amounts), noise=noise)

    def take(self, picture):
        """The same as ever."""
        return self.taken

    def of_mosaics(self):
        """The same, if they are for raw files."""
        return self.taken.denoiser if self.network.options["arch"] == raw_prediction.ARCH else None

    def file_for(self, pages):
        """The file of the weights that are for the pages of an image, each H x W x C, or None."""
        return self.path if self.taken.denoiser.takes(pages[0].shape[2]) else None

    def replace(self, path, network):
        """Takes another network in place of that of a file."""
        self.taken.denoiser = Denoiser(network, **self.amounts)


class ByNoise:
    """The weights that ship, for each image those that are for its noise."""

    of_renders = needs_buffers = False
    prepare = None
    by_noise = True
    told_of_light = False  # how to be done sooner

    def __init__(self, options):
        self.ops = devices.prepare(options)
        self.shelf = auto.Shelf(auto.shipped_weights(), self.ops)
        self.fast, self.amounts, self.spread = options.fast, _amounts(options), auto.Spread()
        self.mosaics = None  # loaded with the first raw file

    def take(self, picture):
        """Measures the noise.

        Raises:
            ValueError: there are no weights for such an image.
        """
        choice, spans = self.shelf.choose_for_pages(picture.pages, self.fast)
        if mixed := self.spread.note(choice.sigma):
            cli.note(mixed)
        if choice.name is None:
            return Taken(None, why=choice.why)
        weights = self.shelf.weights[choice.name]
        denoiser = Denoiser(self.shelf.network(choice.name), **self.amounts)
        return Taken(denoiser, spans, weights.noise, choice.why, choice.light)

    def of_mosaics(self):
        """Those for raw files."""
        if not self.mosaics:
            network, _ = load_network(auto.weights_for_mosaics())
            network.ops = self.shelf.ops
            self.mosaics = Denoiser(network, **self.amounts)
        return self.mosaics

    def file_for(self, pages):
        """The file of the weights that are for the pages of an image, each H x W x C, or None."""
        try:
            name = self.shelf.choose_for_pages(pages, self.fast)[0].name
        except ValueError:  # there are none for such an image, which is said when it is denoised
            return None
        return self.shelf.weights[name].path if name else None

    def replace(self, path, network):
        """Takes another network in place of that of a file."""
        self.shelf.replace(path.stem, network)


def _amounts(options):
    return {name: getattr(options, name) for name in ("tile", "strength", "tta", "detail", "chroma")}


def load(options):
    """What takes a Denoiser for each image: of the weights that --model_path names, or by its noise."""
    return ByNoise(options) if options.model_path == "auto" else OneForAll(options)


# --- Images -------------------------------------------------------------------------------------------------


def denoise_file(weights, files, target, note=cli.note, on_image=None):
    """Denoises one image, page by page; or a render, which is read from the files of its buffers.

    Args:
        weights: of `load`.
        files: that it is read from.
        target: the result's path.
        note: what says which weights were taken, and why.
        on_image: is called with the path, the first page with noise, noisy and denoised, and the Denoiser, if any.
    """
    if raw.is_raw(files[0]) and not weights.of_renders:
        raw_prediction.denoise_file(weights, files[0], target, note)
        return
    frame = _render(weights, files) if weights.of_renders else None
    data = None if frame else images.read_bytes(files[0])
    picture = frame.picture if frame else images.read_image(files[0], data)
    prepared = False
    if weights.prepare:
        pages, lines = zip(*map(weights.prepare, picture.pages), strict=True)
        picture.pages, prepared = list(pages), any(lines)
        if prepared:
            note(f"{files[0]}: {next(filter(None, lines))}")
    try:
        taken = weights.take(picture)
        if taken.why:
            note(f"{files[0]}: {taken.why}")
        same_bytes = taken.denoiser is None and not prepared and target.suffix.lower() == files[0].suffix.lower()
        if not same_bytes:  # a file may be another format's than its name says: told before all the work
            images.check_holds(target, picture.pages, picture)
            data = None  # no longer needed
        noisy = picture.pages[taken.first] if on_image else None
        with _windows_shown(weights, taken, files[0]):
            pages = _denoised(taken, frame, picture)
        if on_image and taken.denoiser:
            on_image(files[0], noisy, pages[taken.first], taken.at(taken.first))
    except ValueError as error:
        raise UserError(f"{files[0]}: {error}") from None
    cli.writable_folder("--save_dir", target.parent)
    if same_bytes:
        images.write_bytes(target, data)
    else:
        images.write_image(target, pages, like=picture)


def _render(weights, files):
    """The render to denoise: the mean of all that were found to show the same view."""
    return renders.mean(
        [renders.read_frame(paths, weights.needs_buffers) for paths in (files, *weights.together.get(files[0], ()))]
    )


def _denoised(taken, frame, picture):
    """The pages of the result; those of the picture are given up one by one."""
    if taken.denoiser is None:
        return picture.pages
    if frame:
        return [finite(renders.as_stored(frame, renders.denoise(taken.denoiser, frame)))]
    pages, picture.pages = picture.pages, []
    for number_, page in enumerate(pages):
        if denoiser := taken.at(number_):
            pages[number_] = finite(taken.noise.restore(page, denoiser(page)))
    return pages


@contextlib.contextmanager
def _windows_shown(weights, taken, name):
    """Shows the progress within an image that takes more than one window; where it takes long, what would take less."""
    bar, denoiser, start = None, taken.denoiser, time.monotonic()

    def on_progress(done, total):
        nonlocal bar
        if bar is None and done < total and distributed.IS_MAIN:
            bar = cli.progress(total=round(total / 1e6, 1), unit="MP", label=Path(name).name[-30:])
        if bar is not None:
            bar.update(round(done / 1e6, 1) - bar.n)
            left = (time.monotonic() - start) * (total / done - 1)
            if taken.light and not weights.told_of_light and left > LONG:
                weights.told_of_light = True
                bar.write(f"(--fast takes {taken.light} instead, in a fraction of the time)", file=sys.stderr)

    if denoiser is None:
        yield
        return
    denoiser.on_progress = on_progress
    try:
        yield
    finally:
        denoiser.on_progress = lambda done, total: None
        if bar is not None:
            bar.close()


def denoise_files(weights, planned, on_image=None):
    """Denoises this process's share; a broken image is reported and the rest goes on. Returns how many failed.

    `on_image` is that of `denoise_file`.
    """
    failed = 0
    mine = planned[distributed.RANK :: distributed.WORLD_SIZE]
    with cli.progress(mine, unit="image", disable=len(planned) == 1 or not distributed.IS_MAIN) as bar:
        for files, target in bar:
            try:
                denoise_file(weights, files, target, lambda line: bar.write(line, file=sys.stderr), on_image)
            except (UserError, MemoryError) as error:
                if len(planned) == 1:
                    raise
                if isinstance(error, MemoryError):
                    error = f"{files[0]}: more memory is needed than there is: {error}"
                failed += 1
                bar.write(f"{error}", file=sys.stderr)
            else:
                bar.write(f"{target}")
            machine.trim_memory()
    return sum(distributed.gather([failed]))


def run(options, load_adapted, open_report):
    """What predict.py and `denoise` do: finds all images, denoises them, and returns the exit code.

    Args:
        options: of `get_parser`.
        load_adapted: of options and plan, the weights and the plan; `load`, after --adapt.
        open_report: of options, what --report asks for: it judges an image, and is closed.
    """
    planned = plan(options)
    report = open_report(options) if options.report and planned else None
    failed = 0
    if planned:
        weights, planned = load_adapted(options, planned)
        failed = denoise_files(weights, planned, report and report.judge)
    if report:
        cli.note(f"report: {report.close()}")
    if failed and distributed.IS_MAIN:
        cli.note(f"{failed} of {len(planned)} images could not be denoised")
    return 1 if failed else 0
