"""Says what the noise of images is, how sure that is, and what to do about it.

Examples:
  python tools/inspect_noise.py --image_path photo.jpg
  python tools/inspect_noise.py --image_path my_photos --report noise_report
  python tools/inspect_noise.py --image_path shot_1.tif --second shot_2.tif     # two frames of one scene
  python tools/inspect_noise.py --image_path my_photos --json noise.json

Five lines say what was found: the kind and strength of the noise, its strength at each brightness, what neighbouring
pixels share of it, what the file's history has left, and the command to run next. --report writes one page with
curves, the correlation, the spectrum and the places that were measured. docs/inspecting.md explains them.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.cli import number
from denoising.files import images, pillow, raw
from denoising.imaging import noise_traces, stripes
from denoising.imaging.noise_analysis import Analysis, analyse
from denoising.imaging.pixels import middle, pack_bayer, to_01
from denoising.reports import noise_page

NAMES = {"gauss": "white noise", "poisson": "white noise that grows with brightness", "correlated": "correlated noise"}


@dataclass
class Inspected:
    """A file and what was found in it."""

    path: Path
    pages: int  # the first of which was measured
    size: tuple
    kind: str  # of its samples
    found: Analysis
    quality: int | None  # of its JPEG compression
    grid: tuple | None
    bits: int
    comb: float
    rows: float
    columns: float


def get_parser():
    """The flags."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add(
        "--image_path",
        required=True,
        help="an image, a raw file, a folder of them, or a pattern such as 'photos/*.jpg'",
    )
    add("--second", metavar="FILE", help="another frame of the same scene: the difference of the two is measured")
    add("--json", nargs="?", const="-", metavar="FILE", help="all that was found as JSON, to stdout or a file")
    add("--report", metavar="DIR", help="a folder for a page with curves, pictures and the advice")
    add("--pictures", type=number(int, 1), default=30, metavar="N", help="how many images the report shows")
    add("--overwrite", action="store_true", help="replace the report or the JSON file")
    return parser


def read(path, data=None):
    """The pages of an image; of a raw file the four colours of its mosaic, whose noise no software has touched."""
    if not raw.is_raw(path):
        return images.read_image(path, data).pages
    with raw.opened(path, data) as photo:
        cli.refuse((photo.red is None, f"{path}: {photo.kind}: only Bayer mosaics are measured"))
        return [pack_bayer(raw.from_red(photo.mosaic(), photo.red)[..., None])]


def inspect(path, second=None):
    """Reads a file and measures it; returns the image too."""
    data = images.read_bytes(path)
    pages = read(path, data)
    image, other = pages[0], None
    if second:
        other = read(second)[0]
        if (other.shape, other.dtype) != (image.shape, image.dtype):
            sizes = " and ".join(f"{array.shape} of {array.dtype}" for array in (image, other))
            raise cli.UserError(f"--second: two frames of one scene have the same size and type, these are {sizes}")
        if np.array_equal(other, image):
            raise cli.UserError(f"--second: {second} is the same image as {path}")
    tables = pillow.quantization(data)
    bits, comb = noise_traces.levels(image)
    part = to_01(image[middle(image, noise_traces.MAX_SIDE)])
    rows, columns = (255 * deviation for deviation in stripes.deviations(part))
    return image, Inspected(
        path, len(pages), image.shape, image.dtype.name, analyse(image, other),
        tables and noise_traces.jpeg_quality(tables), noise_traces.jpeg_grid(image), bits, comb, rows, columns,
    )  # fmt: skip


def inspect_all(paths, shown):
    """What was found in each file, the images of the first ones, the fixed pattern, and the number that failed."""
    results, pictures, failed = [], [], 0
    pattern, sizes = noise_traces.FixedPattern(), set()
    for path in cli.progress(paths, unit="image"):
        try:
            image, result = inspect(path)
        except cli.UserError as error:
            cli.note(f"{os.path.basename(sys.argv[0])}: {error}")
            failed += 1
            continue
        results.append(result)
        pictures += [image] * (len(pictures) < shown)
        sizes.add(image.shape)
        if len(sizes) == 1:
            pattern.add(image)
    return results, pictures, pattern.result() if len(sizes) == 1 else None, failed


# --- The five lines -----------------------------------------------------------------------------------------


def summary(results, pattern, where):
    """Five lines of text, the last of which is a command."""
    noisy = [result for result in results if result.found.kind != "none"]
    first = results[0]
    if len(results) == 1:
        what = f"{first.path}: {first.found.describe()}"
    else:
        what = f"{where}: {len(results)} images: {_kinds(results, noisy)}"
    # A mean over kinds would be true of none of them.
    usual = Counter(result.found.kind for result in noisy).most_common(1)
    alike = [result for result in noisy if result.found.kind == usual[0][0]]
    those = f", in the {len(alike)} with {NAMES[usual[0][0]]}" if len(alike) < len(noisy) else ""
    measured = [_strength(alike) + those, _shared(alike) + those]
    return [what, *measured, _traces(results, pattern), f"next: {advice(results, where)}"]


def _kinds(results, noisy):
    """How many images have which noise, and how strong it is."""
    counts = Counter(result.found.kind for result in noisy)
    parts = []
    for kind, count in counts.most_common():
        low, middle, high = np.quantile([r.found.sigma for r in noisy if r.found.kind == kind], (0, 0.5, 1))
        spread = f" ({low:.1f} to {high:.1f})" if count > 1 else ""
        parts.append(f"{NAMES[kind]} of {middle:.1f}{spread} in {count}")
    if len(noisy) < len(results):
        parts.append(f"no noise that can be measured in {len(results) - len(noisy)}")
    sigmas = [result.found.sigma for result in noisy]
    differ = f"; it differs {max(sigmas) / min(sigmas):.0f} times" if sigmas and max(sigmas) > 10 * min(sigmas) else ""
    return ", ".join(parts) + differ


def _strength(noisy):
    """The strength in dark, middle and bright places, and that of each channel."""
    if not noisy:
        return "strength: nothing to measure"
    by_place = []
    for result in noisy:
        points = result.found.noisy_points.mean(0)
        points = points[np.argsort(points[:, 0])]
        thirds = np.array_split(np.sqrt(np.maximum(points[:, 1], 0)) * 255, 3)
        by_place.append([third.mean() for third in thirds if len(third)])
    places = np.array([place for place in by_place if len(place) == 3])
    parts = []
    if len(places):
        text = "{:.1f} in dark places, {:.1f} in middle ones, {:.1f} in bright ones".format(*np.median(places, axis=0))
        parts.append(text)
    counts = {len(result.found.curve) for result in noisy}
    if len(counts) == 1 and counts != {1}:
        levels = np.median([np.sqrt(np.maximum(r.found.points[..., 1], 0)).mean(1) * 255 for r in noisy], axis=0)
        names = noise_page.channel_names(counts.pop())
        parts.append(", ".join(f"{name} {level:.1f}" for name, level in zip(names, levels, strict=True)))
    parts = parts or [f"{np.median([result.found.sigma for result in noisy]):.1f}"]
    return f"strength: {'; '.join(parts)} (standard deviation of 255)"


def _shared(noisy):
    """What neighbours and channels have in common."""
    if not noisy:
        return "neighbours: nothing to measure"
    maps = np.mean([result.found.correlation.mean(0) for result in noisy], axis=0)
    text = f"neighbours: share {maps[3, 4]:.2f} to the right, {maps[4, 3]:.2f} below, {maps[3, 5]:.2f} two pixels away"
    between = [result.found.between_channels for result in noisy if len(result.found.curve) > 1]
    text += f"; channels share {np.mean(between):.2f}" if between else ""
    return text.replace("-0.00", "0.00")


def _traces(results, pattern):
    """What the files are, and what their history has left in them."""
    first = results[0]
    kinds = {(result.size, result.kind) for result in results}
    height, width, channels = first.size
    one = f"{width}x{height}, {channels} channel{'s' * (channels > 1)}, {first.kind}"
    parts = [one if len(kinds) == 1 else "several sizes or types"]
    qualities = [result.quality for result in results if result.quality]
    if qualities:
        low, high = min(qualities), max(qualities)
        parts.append(f"JPEG of quality {low}" + (f" to {high}" if high > low else "") + _of(qualities, results))
    grids = [result.grid for result in results if result.grid]
    if grids:
        parts.append(f"a grid of JPEG blocks from row {grids[0][0]}, column {grids[0][1]}" + _of(grids, results))
    if len({result.bits for result in results}) == 1 and first.bits:
        parts.append(f"{first.bits} bits used")
    combs = [result for result in results if result.comb > 0.05]
    if combs:
        parts.append(f"a comb in the histogram ({combs[0].comb:.0%} of the levels empty)" + _of(combs, results))
    parts.append(f"{np.mean([result.found.clipped for result in results]):.1%} clipped")
    for name in ("rows", "columns"):
        banded = [getattr(result, name) for result in results if getattr(result, name) > 0.1]
        if banded:
            parts.append(f"{name} differ by {np.median(banded):.2f}" + _of(banded, results))
    if any(result.size[2] == 1 and len(result.found.curve) == 4 for result in results):
        parts.append("a Bayer mosaic, measured in its four phases")
    stacks = [result.pages for result in results if result.pages > 1]
    if stacks:
        parts.append(f"the first of {stacks[0]} pages measured" + _of(stacks, results))
    if pattern:
        strength, hot = pattern
        parts.append(f"fixed pattern {strength:.2f}, {len(hot)} hot pixel{'s' * (len(hot) != 1)}")
    return "file: " + ", ".join(parts)


def _of(some, results):
    return f" in {len(some)} of {len(results)}" if len(some) < len(results) else ""


def advice(results, where):
    """The command to run next."""
    noisy = [result.found for result in results if result.found.kind != "none"]
    where = cli.quoted(where)
    predict = f"python predict.py --image_path {where} --save_dir denoised"  # which measures, and takes what fits
    raws = any(raw.is_raw(result.path) for result in results)  # which predict.py reads, and train.py does not
    if not raws and results[0].size[2] not in (1, 3):
        # Grey networks take any number of channels, each by itself.
        predict += " --model_path models/grey_gauss5_50_deep.pdparams"
    if not noisy:
        # By texture, or in the pages that were not measured.
        hidden = any(result.found.certainty == "guess" or result.pages > 1 for result in results)
        return predict if hidden else "nothing to do"
    kind = Counter(found.kind for found in noisy).most_common(1)[0][0]
    alike = [found for found in noisy if found.kind == kind]
    sigma = float(np.median([found.sigma for found in alike]))
    channels = len(alike[0].curve)
    if raws or channels != 4:
        return predict
    train = f"python train.py --data_dir {where} --noisetype none --n_channel 4"
    if kind == "correlated":
        return train
    known = f"gauss{sigma:.3g}" if kind != "poisson" else f"poisson{np.median([found.peak for found in alike]):.3g}"
    return f"{train} --method recorrupted2recorrupted --known_noise {known}"


# --- Results ------------------------------------------------------------------------------------------------


def as_dict(result):
    """What was found in a file, for JSON."""
    found = result.found
    return {
        "file": str(result.path),
        "pages": result.pages,
        "shape": list(result.size),
        "type": result.kind,
        "kind": found.kind,
        "sigma": round(found.sigma, 3),
        "certainty": found.certainty,
        "reason": found.reason,
        "curve": [[float(f"{value:.4g}") for value in line] for line in found.curve],
        "points": np.round(found.points, 8).tolist(),
        "peak": round(found.peak, 2),
        "neighbour": round(found.neighbour, 4),
        "between_channels": round(found.between_channels, 4),
        "correlation": np.round(found.correlation, 4).tolist(),
        "spectrum": np.round(found.spectrum, 5).tolist(),
        "clipped": round(found.clipped, 5),
        "jpeg_quality": result.quality,
        "jpeg_grid": list(result.grid) if result.grid else None,
        "bits": result.bits,
        "empty_levels": round(result.comb, 4),
        "rows": round(result.rows, 3),
        "columns": round(result.columns, 3),
    }


def main(argv=None):
    """Measures, prints five lines, and writes what was asked for."""
    options = get_parser().parse_args(argv)
    paths = images.find_images("--image_path", options.image_path, images.IMAGE_SUFFIXES + raw.SUFFIXES)
    cli.refuse((options.second and len(paths) > 1, "--second: needs a single image as --image_path"))
    if options.json and options.json != "-":
        cli.writable_file("--json", options.json, options.overwrite)
    if options.report:
        noise_page.refuse_page(cli.writable_folder("--report", options.report), options.overwrite)
    shown = options.pictures if options.report else 0
    if len(paths) == 1:
        if options.second:
            cli.existing_file("--second", options.second)
        image, result = inspect(paths[0], options.second)
        results, pictures, pattern, failed = [result], [image], None, 0
    else:
        results, pictures, pattern, failed = inspect_all(paths, shown)
    if not results:
        raise cli.UserError(f"--image_path: none of the {failed} images in {options.image_path} can be read")
    lines = summary(results, pattern, options.image_path)
    found = {"summary": lines, "images": [as_dict(result) for result in results]}
    if pattern:
        found["fixed_pattern"], found["hot_pixels"] = round(pattern[0], 4), pattern[1][:1000].tolist()
    if options.json == "-":
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(lines))
    if options.json and options.json != "-":
        cli.write_json(options.json, found)
    if options.report:
        entries = [(result.path.name, image, result.found) for result, image in zip(results, pictures, strict=False)]
        cli.note(noise_page.write_page(options.report, "Noise", lines, entries))
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
