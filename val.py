"""Scores a denoiser on validation sets by the published protocol: Kodak x10, BSD300 x3, Set14 x20, seed 101.

Examples:
  python val.py --model_path best_model.pdparams
  python val.py --model_path best_model.pdparams --val_dirs ./validation --noisetype poisson30 --save_dir report
  python val.py --model_path best_model.pdparams --val_dirs photos/test --show_output 3
  python val.py --model_path best_model.pdparams --val_images 5 --val_repeats 1 --json scores.json
  python val.py --model_path best_model.pdparams --no_clean my_noisy_photos --report report      # docs/trust.md
  python val.py --model_path best_model.pdparams --no_clean frames_a --pair_dir frames_b
"""

import json
import os
import re

from denoising import cli
from denoising.cli import UserError, number
from denoising.data import noisy_frames, validation
from denoising.files import images
from denoising.files.results import report_files
from denoising.imaging import trust
from denoising.imaging.noise import list_of_noise, noise_of_flag
from denoising.imaging.pixels import PLAIN_SPAN, span_of, to_01
from denoising.inference import devices, distributed
from denoising.inference.denoiser import Denoiser, finite
from denoising.inference.estimate import judge
from denoising.inference.evaluation import evaluate_sets
from denoising.reports import montage, page, scores, trust_page


def get_parser():
    """The published flags under their published names, and ours."""
    # fmt: off
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--model_path", required=True, help="the .pdparams weights to score")
    add("--val_dirs", default="./validation", help="folder of clean validation sets, or a pair file")
    add("--no_clean", metavar="FOLDER",
        help="noisy images, to be judged without clean ones: how much noise goes, how much structure goes with it")
    add("--pair_dir", metavar="FOLDER",
        help="with --no_clean: another frame of each scene under the same name, which tells the error itself")
    add("--noisetype", help=f"{list_of_noise()}; what the network was trained on, unless given (to be given where its "
        "images had noise of their own); with --no_clean the noise that the images have, gaussA or poissonA, which is "
        "measured unless given")
    add("--n_feature", type=number(int, 1), help="refuse weights of another width")
    add("--n_channel", type=int, choices=[1, 3, 4], help="refuse weights of other channels")
    add("--val_repeats", type=number(int, 1), help="repeats per set, instead of its own")
    add("--val_images", type=number(int, 1), help="only the first so many images of each set")
    devices.add_window_flags(parser)
    add = parser.add_argument_group("output").add_argument
    add("--json", nargs="?", const="-", metavar="FILE", help="the table as JSON, to stdout or a file")
    add("--csv", metavar="FILE", help="PSNR and SSIM of every image")
    add("--report", "--save_dir", "--result_dir", metavar="DIR",
        help="index.html with every image, plots and settings; beside it the pictures 00000-input.png, -output, -label "
        "and -residual, and settings.json")
    add("--report_images", type=number(int, 0), default=100, help="pictures of how many images of each set")
    add("--show_output", type=number(int, 1), metavar="N",
        help="the first N images noisy, denoised and clean side by side: on the screen; in files where there is none, "
        "and in --save_dir")
    add("--overwrite", action="store_true", help="replace results that exist")
    devices.add_flags(parser)
    return parser


def refuse_existing(options):
    """Nothing is written over unasked."""
    for flag in ("json", "csv"):
        path = getattr(options, flag)
        if path and path != "-":
            cli.writable_file(f"--{flag}", path, options.overwrite)
    if options.report:
        page.refuse_report(options.report, options.overwrite)


class Montages:
    """The first so many images, each noisy, denoised and clean side by side."""

    def __init__(self, options):
        self._wanted = options.show_output or 0
        # Several processes have no screen in common.
        self._pyplot = montage.screen() if self._wanted and distributed.WORLD_SIZE == 1 else None
        self._folder = options.report or (None if self._pyplot else "output")
        self._shown = []
        if self._wanted and self._folder and not options.report:
            cli.writable_folder("--show_output", self._folder)
            taken = re.compile(r"(\d{5,})-montage\.png")
            found = [match for match in map(taken.fullmatch, os.listdir(self._folder)) if match]
            found = [match[0] for match in found if int(match[1]) < self._wanted]
            if found and not options.overwrite:
                raise UserError(f"--show_output: {self._folder}/{min(found)} exists; --overwrite replaces it")

    def add(self, score, clean, noisy, denoised):
        """Makes the montage of an image at its first repeat, if it is one of those wanted."""
        if score.repeat > 0 or score.number >= self._wanted:
            return
        title = f"{score.set_name}: {score.name}"
        cells = [
            (noisy, f"noisy {scores.decimals(score.psnr_noisy)} dB"),
            (denoised, f"denoised {scores.decimals(score.psnr)} dB"),
            (clean, "clean"),
        ]
        picture = montage.grid([cells], title)
        if self._folder:
            images.write_image(os.path.join(self._folder, page.file_name(score.number, "montage")), picture)
        if self._pyplot:
            self._shown.append((title, picture))

    def show(self, images_in_all):
        """Says where the files are, and opens the windows."""
        if self._wanted > images_in_all:
            cli.note(f"--show_output: {self._wanted}, but there are {images_in_all} images")
        if self._wanted and self._folder:
            first, last = (page.file_name(n, "montage") for n in (0, min(self._wanted, images_in_all) - 1))
            which = first if first == last else f"{first} to {last}"
            why = "" if self._pyplot else " (there is no screen to show them on)"
            cli.note(f"montages: {self._folder}/{which}{why}")
        if self._shown:
            montage.show(self._pyplot, self._shown)


def load(options):
    """The denoiser, after a check that its weights are those that the flags describe."""
    ops = devices.prepare(options)
    denoiser = Denoiser(options.model_path, ops, tile=options.tile, tta=options.tta)
    for name in ("n_feature", "n_channel"):
        wanted, found = getattr(options, name), denoiser.network.options[name]
        if wanted not in (None, found):
            raise UserError(f"--{name}: {wanted}, but {options.model_path} holds a network of {found}")
    return denoiser


def score_sets(options, denoiser, noise, sets, pictures):
    """The scores of all sets; each image goes to all `pictures` (montages, report) as it is scored."""
    counts = [(options.val_repeats or found.repeats) * len(found.paths(options.val_images)) for found in sets]
    with cli.progress(
        total=sum(counts) // distributed.WORLD_SIZE, unit="image", disable=not distributed.IS_MAIN
    ) as bar:

        def on_image(score, *images_255):
            bar.set_description(score.set_name, refresh=False)
            bar.update()
            for picture in pictures:
                picture.add(score, *images_255)

        limits = options.val_repeats, options.val_images
        return list(evaluate_sets(denoiser, sets, noise, *limits, on_image))


# --- Without clean images -----------------------------------------------------------------------------------


def noisy_files(options):
    """The noisy files to judge, before any slow step; none without --no_clean."""
    judged = options.no_clean is not None
    cli.refuse(
        (options.pair_dir and not judged, "--pair_dir: it goes with --no_clean"),
        (options.val_repeats and judged, "--val_repeats: with --no_clean each file is judged once"),
        (options.show_output and judged, "--show_output: with --no_clean the pictures are in --report"),
        (options.csv and judged, "--csv: with --no_clean there is --json"),
        (judged and distributed.WORLD_SIZE > 1, "--no_clean: takes one process"),
    )
    if not judged:
        return []
    flags = "--no_clean", options.no_clean, "--pair_dir", options.pair_dir
    # The report of an earlier run may lie among the images.
    return noisy_frames.find(*flags, report_files(options.report or ""))[: options.val_images]


def noise_of_files(options):
    """The noise that --noisetype says the files have; None where it is to be measured."""
    noise = noise_of_flag("--noisetype", options.noisetype)
    known = trust.known_level(noise, options.n_channel or 1)
    wanted = "gaussA or poissonA with one number; unless given, the noise is measured"
    refused = known is None and noise.name != "none"
    cli.refuse((refused, f"--noisetype: {options.noisetype} is not for --no_clean, which takes {wanted}"))
    return noise if known else None


def check_range(path, noisy):
    """Refuses numbers beyond white, which cannot be judged, and tells of an image that fills little of its range."""
    low, high = span_of(noisy)
    better = "predict.py --report without --model_path lets weights see it as an image"
    cli.refuse(
        (high > 1.25 or low < -0.25,
         f"--no_clean: {path}: its values lie from {low:.4g} to {high:.4g}, where white is 1; {better}")
    )  # fmt: skip
    if (low, high) != PLAIN_SPAN:
        cli.note(f"{path}: its values lie from {low:.4g} to {high:.4g}, where white is 1; {better}")


def judge_files(options, files):
    """Judges noisy images by what was removed from them, prints a table, and writes what was asked for."""
    refuse_existing(options)
    noise, denoiser = noise_of_files(options), load(options)
    cli.refuse((not denoiser.takes_images, f"--no_clean: {options.model_path} is for renders or raw files"))
    title = f"{os.path.basename(options.model_path)}, judged without clean images"
    more = options.report_images, options.overwrite
    report = trust_page.TrustReport(options.report, title, *more) if options.report else None
    level, entries = noise and trust.known_level(noise, denoiser.n_channel), []
    for name, path, second in cli.progress(files, unit="image"):
        noisy, other = noisy_frames.read(path, second, denoiser.n_channel, "--pair_dir")
        check_range(path, noisy)
        try:
            denoised = finite(denoiser(to_01(noisy)))
        except ValueError as error:
            raise UserError(f"--no_clean: {path}: {error}") from None
        entries.append((name, judge(denoiser, noisy, level, other, denoised)))
        if report:
            report.add(name, noisy, denoised, entries[-1][1])
    none = all(found.level is None for _, found in entries)
    cli.refuse((none, f"--no_clean: no image has noise that can be measured ({entries[0][1].why_not}); "
                "--noisetype names it"))  # fmt: skip
    data = {"model": options.model_path, "images": [trust_page.as_dict(*entry) for entry in entries]}
    if options.json == "-":
        print(json.dumps(data, indent=2))
    else:
        print(trust_page.table(entries), *(f"{name}: {found.verdict()}" for name, found in entries), sep="\n")
    if options.json and options.json != "-":
        cli.write_json(options.json, data)
    if report:
        cli.note(f"report: {report.close()}")
    return 0


# --- Results ------------------------------------------------------------------------------------------------


def print_scores(results, absent, val_dirs):
    """The published lines, the table, and what was not there to be scored."""
    for result in results:
        print(f"[EVAL] {result.name}: psnr:{result.mean('psnr')} ssim:{result.mean('ssim')}")
    print(scores.score_table(results))
    for missing in absent:
        cli.note(f"{missing.name} is not under {val_dirs}: {missing.origin}")


def write_json(target, options, noisetype, added, results):
    """The table for machines, into a file or to stdout; `added` is the noise that was added to each set."""
    sets = [{**row, "noisetype": name} for row, name in zip(scores.score_summary(results), added, strict=True)]
    data = {"model": options.model_path, "noisetype": noisetype, "sets": sets}
    if target == "-":
        print(json.dumps(data, indent=2))
    else:
        cli.write_json(target, data)


def write_csv(path, results):
    """A row for each scored image."""
    rows = [("set", "image", "repeat", "psnr_noisy", "ssim_noisy", "psnr", "ssim")]
    for result in results:
        for s in result.scores:
            rows.append((s.set_name, s.name, s.repeat, s.psnr_noisy, s.ssim_noisy, s.psnr, s.ssim))
    cli.write_text(path, cli.csv_text(rows, end_of_line="\r\n"))


def close_report(report, options, settings, results):
    """Writes the report's page and settings, and says which images it leaves out."""
    cli.write_json(os.path.join(options.report, "settings.json"), settings)
    cli.note(f"report: {report.close(results)}")
    for result in results:
        count = result.image_count
        if count > options.report_images:
            cli.note(f"{result.name}: it shows {options.report_images} of {count} images; --report_images {count}")


def main(argv=None):
    """Scores, and writes what was asked for."""
    # Check everything before the first slow step.
    options = get_parser().parse_args(argv)
    cli.existing_file("--model_path", options.model_path)
    files = noisy_files(options)
    if files:
        return judge_files(options, files)
    sets, absent = validation.find_validation_sets(options.val_dirs)
    noisy = all(found.own_noise for found in sets)
    # What is known of undersampled slices is put back into the results, whoever has undersampled them.
    needless = noisy and options.noisetype not in (None, "none") and "mri" not in options.noisetype
    cli.refuse((needless, f"--noisetype: what {options.val_dirs} holds has its own noise, none is added"))
    refuse_existing(options)
    montages = Montages(options)

    # Load, and settle the noise.
    denoiser = load(options)
    raw = denoiser.n_input == 2
    cli.refuse((raw, f"--model_path: {options.model_path} is for raw files; predict.py denoises them"))
    noisetype = options.noisetype or denoiser.options.get("noisetype", "gauss25")
    own = denoiser.takes_images and not noisy and options.noisetype is None and noisetype == "none"
    without = f"--noisetype: {options.model_path} learned from files that have noise; name what to add to clean ones"
    cli.refuse((own, f"{without}, such as gauss25; --no_clean judges noisy images"))
    noise = noise_of_flag("--noisetype", noisetype)
    added = ["none" if found.own_noise else noisetype for found in sets]
    noisetype = "none" if noisy else noisetype

    # Score set by set; pictures are written as they come.
    pictures, report = [montages], None
    settings = vars(options) | denoiser.options | {"noisetype": noisetype, "Versions": devices.versions()}
    if options.report:
        more = options.report_images, options.overwrite, distributed.IS_MAIN
        report = page.HtmlReport(options.report, "Denoising report", settings, *more)
        distributed.gather([])  # nobody writes pictures before those of an earlier run are gone
        pictures.append(report)
    results = score_sets(options, denoiser, noise, sets, pictures)
    if not distributed.IS_MAIN:
        return 0

    # Tell.
    if options.json != "-":
        print_scores(results, absent, options.val_dirs)
    if options.json:
        write_json(options.json, options, noisetype, added, results)
    if options.csv:
        write_csv(options.csv, results)
    if report:
        close_report(report, options, settings, results)
    montages.show(sum(result.image_count for result in results))
    return 0


if __name__ == "__main__":
    cli.run(main)
