"""`predict.py --adapt`: the weights for the images of a folder, adapted to these very images (`adapting.py`)."""

from pathlib import Path

from denoising import cli
from denoising.data import bursts, renders
from denoising.data.samples import evenly
from denoising.files import images, raw
from denoising.imaging import stripes
from denoising.imaging.noise_analysis import analyse
from denoising.imaging.pixels import PLAIN_SPAN, span_of
from denoising.inference import checkpoint, prediction
from denoising.training.adapting import Length, adapt
from denoising.training.lessons import SMALLEST, Rendered, Subject

SAMPLE = 24  # images of a folder that are learnt from
VIEWS = 4  # of renders that are learnt from
CUT_OFF = 0.05  # of the values of two frames; up to it, learning from each other loses nothing, from 0.1 on it does


def load(options, planned):
    """What takes a Denoiser for each image, as `prediction.load` does, after adapting if that is asked for.

    Args:
        options: of predict.py.
        planned: of `prediction.plan`, not empty.

    Returns:
        The weights; and the plan, without the renders that count into another's mean.
    """
    weights = prediction.load(options)
    if options.adapt is None and options.adapt_steps is None:
        return weights, planned
    if weights.of_renders:
        cli.refuse(
            (options.skip_existing, "--skip_existing: with --adapt the renders of a view have one result together")
        )
        views, weights.together = _views(weights, [files for files, _ in planned])
        groups, further = {weights.path: views}, {path for paths in weights.together.values() for path, *_ in paths}
        planned = [(files, target) for files, target in planned if files[0] not in further]
    else:
        weights.prepare = stripes.take_off
        groups = _groups(weights, [files[0] for files, _ in planned])
    everything = sum(map(len, groups.values()))
    for path, subjects in groups.items():
        # Each image gets the same share of the time, whatever weights are for it.
        share = len(subjects) / everything
        if options.adapt_steps:
            length = Length(steps=max(1, round(options.adapt_steps * share)))
        else:
            length = Length(minutes=options.adapt * share)
        result = adapt(path, subjects, weights.ops, length, options.seed)
        cli.note(f"--adapt: {path.stem}, {result.describe()}")
        if result.kept:
            weights.replace(path, result.network)
            if options.save_adapted:
                target = Path(options.save_adapted)
                target = target if len(groups) == 1 else prediction.adapted_from(path, target)
                _save(target, path, result, options.seed)
    return weights, planned


def _groups(weights, paths):
    """The images to learn from, by the file of the weights that are for them; says what is left out, and why."""
    groups, seen = {}, _Seen()
    chosen = evenly(len(paths), SAMPLE)
    for index in cli.progress(chosen, unit="image", label="looking at the noise"):
        pages = seen.pages(paths[index])
        file = weights.file_for(pages) if pages else None
        if file is None:
            continue
        page = pages[0]
        if weights.by_noise and span_of(page) != PLAIN_SPAN:
            seen.elsewhere += 1
            continue
        subject = seen.subject(page, paths, index)
        if subject is not None:
            groups.setdefault(file, []).append(subject)
    seen.tell()
    return groups


def _views(weights, sources):
    """The views to learn from, of which there are several renders side by side.

    Returns:
        The views; and the files of the further renders of each, by the first one's first file.
    """
    found, together, view, first = [], {}, None, None
    for files in cli.progress(sources, unit="render", label="looking for renders of one view"):
        try:
            frame = renders.read_frame(files, weights.needs_buffers)
        except cli.UserError:
            frame = None  # what is broken is reported when it is denoised
        if frame and view and view.takes(frame):
            together.setdefault(first, []).append(files)
            if view not in found and len(found) < VIEWS:
                found.append(view)
        elif frame:
            view, first = Rendered(frame), files[0]
    cli.refuse(
        (not found,
         f"--adapt: renders learn from each other: of {len(sources)} none shows the same view as the next one, under "
         f"noise of its own, {SMALLEST}x{SMALLEST} pixels or more; render the view again with another seed, into the "
         "same folder"),
    )  # fmt: skip
    count = sum(map(len, together.values())) + len(together)
    shown = _counted(len(together), "view")
    cli.note(f"--adapt: {count} renders show {shown}; the mean of each is denoised, under its first name")
    return found, together


class _Seen:
    """Reads images, and counts what has been found."""

    def __init__(self):
        self.elsewhere = self.raw = self.small = self.quiet = self.shared = 0
        self.paired = self.cut_off = self.unlike = self.shift = 0

    def pages(self, path):
        """The pages of a file without stripes, or none: what is broken is reported when it is denoised."""
        if raw.is_raw(path):
            self.raw += 1
            return []
        try:
            return [stripes.take_off(page)[0] for page in images.read_image(path).pages]
        except cli.UserError:
            return []

    def subject(self, page, paths, index):
        """What is learnt from an image: from another frame of its scene, if there is one next to it."""
        if min(page.shape[:2]) < SMALLEST:
            self.small += 1
            return None
        analysis = analyse(page)
        second = self._second(page, paths, index, analysis) if analysis.kind != "none" else None
        subject = Subject.of(*(second or (page, None)), analysis=analysis)
        if subject is None and analysis.kind == "none":
            self.quiet += 1
        elif subject is None:
            self.shared += 1
        return subject

    def _second(self, page, paths, index, analysis):
        """The parts of an image and of the next or last one in its folder that show the same, or None."""
        for other in (index + 1, index - 1):
            if not 0 <= other < len(paths) or paths[other].parent != paths[index].parent:
                continue
            pages = self.pages(paths[other])
            if not pages or pages[0].shape != page.shape or pages[0].dtype != page.dtype:
                continue
            found = bursts.aligned(page, pages[0], analysis.sigma / 255)
            if found and min(found[0].shape[:2]) >= SMALLEST:
                if analysis.kind != "correlated" and bursts.cut_off(*found[:2]) > CUT_OFF:
                    self.cut_off += 1
                    return None
                self.paired += 1
                self.shift = max(self.shift, *map(abs, found[2]))
                return found[:2]
            self.unlike += 1
        return None

    def tell(self):
        """What was found, in lines."""
        nothing = "nothing is learnt from"
        if self.paired:
            cli.note(
                f"--adapt: {_counted(self.paired)} with another frame of the scene beside them learn from it "
                f"(Noise2Noise); frames were moved by up to {self.shift} whole pixels"
            )
        if self.cut_off:
            cli.note(
                f"--adapt: {_counted(self.cut_off)} with another frame of the scene beside them are taken alone: "
                "black and white cut off much of their noise, so their mean is too bright or too dark"
            )
        elif self.unlike and not self.paired:
            cli.note(
                "--adapt: images of one size lie side by side, but no two of them show one scene, moved by whole "
                "pixels and under noise of their own: each is taken by itself"
            )
        if self.quiet:
            cli.note(f"--adapt: {nothing} {_counted(self.quiet)} in which no noise can be measured")
        if self.shared:
            cli.note(
                f"--adapt: {nothing} {_counted(self.shared)} whose noise neighbouring pixels share, as that of a "
                "camera's JPEG: only another frame of the scene, beside it, would tell it from detail"
            )
        if self.raw:
            cli.note(f"--adapt: {nothing} raw files, whose weights know the noise of sensors")
        if self.elsewhere:
            cli.note(
                f"--adapt: {nothing} {_counted(self.elsewhere)} whose values use a small part of their range, or lie "
                "beyond it"
            )
        if self.small:
            cli.note(f"--adapt: {nothing} {_counted(self.small)} smaller than {SMALLEST}x{SMALLEST} pixels")


def _counted(count, word="image"):
    return f"{count} {word}{'s' * (count != 1)}"


def _save(target, path, result, seed):
    """Writes the adapted weights with what rebuilds the network, and what they come from."""
    _, options = checkpoint.load_network(path)
    about = {"adapted_from": path.name, "adapted_steps": result.steps, "seed": seed}
    checkpoint.save_network(target, checkpoint.network_state(result.network), {**options, **about})
    cli.note(f"--adapt: the weights are in {target}")
