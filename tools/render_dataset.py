r"""Renders noisy images with albedo and normals, and their targets, with Mitsuba 3 (pip install mitsuba).

Examples:
  python tools/render_dataset.py --save_dir renders
  python tools/render_dataset.py --save_dir renders --n_scenes 200 --spp 4 --clean_targets
  python tools/render_dataset.py --save_dir renders --n_scenes 400 --views 2 --size 128 --spp 1 2 4 8 16
  python tools/render_dataset.py --save_dir kitchen --scenes kitchen.xml --n_renders 16 --spp 32
  python train.py --method noise2noise --arch joint_bilateral --data_dir renders/train --val_dirs renders/valid

Scenes are drawn from --seed, or come from files of Mitsuba (each camera in them counts as a scene). What is written:
  SAVE_DIR/train/{render,albedo,normal}/NAME_K.exr    --n_renders independent noisy renders of each scene
  SAVE_DIR/train/target/NAME_K.exr                    another one of the same scene: what Noise2Noise learns from
  SAVE_DIR/train/clean/NAME_K.exr                     the converged one, with --clean_targets
  SAVE_DIR/valid/{render,albedo,normal,target}/...    other scenes; their targets are converged
Interrupted, the same command goes on where it stopped, and ends with the same files; a larger --n_scenes adds to them.
"""

import concurrent.futures
import functools
import importlib.util
import json
import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli, machine
from denoising.cli import UserError, number
from denoising.data import renders
from denoising.files import images
from denoising.imaging.pixels import Picture

RECORD = "render_dataset.json"
OWN_SCENE = "cornell_box"  # stands for a file, and means the one scene that Mitsuba's package holds
PASS_SAMPLES = 1 << 21  # a long render is made of passes of so many samples: some seconds each


def get_parser():
    """The flags."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--save_dir", required=True, help="new folder, or an earlier one of the same options")
    add = parser.add_argument_group("scenes").add_argument
    add("--n_scenes", type=number(int, 0, 99999), default=60, help="scenes to train on")
    add("--views", type=number(int, 1, 1000), default=1,
        help="directions in which the camera of a drawn training scene looks, each rendered like a scene")  # fmt: skip
    add("--n_valid", type=number(int, 0, 99999), default=8, help="scenes to validate on")
    add("--scenes", nargs="+", metavar="FILE", help="Mitsuba's .xml files to train on, none is drawn then")
    add("--valid_scenes", nargs="+", metavar="FILE",
        help=f"Mitsuba's .xml files to validate on; {OWN_SCENE} is the scene that comes with it")  # fmt: skip
    add("--seed", type=number(int, 0, 2**31 - 1), default=0, help="seed of the scenes and of all noise")
    add = parser.add_argument_group("renders").add_argument
    add("--size", type=number(int, 16, 8192), help="side in pixels (default: 256, or what a scene's file says)")
    add("--spp", type=number(int, 1, 2**20), nargs="+", default=[8],
        help="samples per pixel of a noisy render; of several numbers the scenes take one after another")  # fmt: skip
    add("--reference_spp", type=number(int, 1, 2**20), default=512, help="samples per pixel of a converged render")
    add("--n_renders", type=number(int, 2, 1000), default=2, help="noisy renders of each training scene")
    add("--clean_targets", action="store_true", help="also write converged renders of the training scenes")
    add("--format", default="exr", choices=["exr", "png"],
        help="linear light of any range; or tone-mapped to 8 bits, to look at")  # fmt: skip
    add(
        "--variant",
        default="scalar_rgb",
        help="of Mitsuba: llvm_ad_rgb is three times as fast where it finds a new LLVM, e.g. 19 (DRJIT_LIBLLVM_PATH)",
    )
    add("--workers", type=number(int, 1, 1024), default=machine.cores(), help="processes that render")
    return parser


# --- The plan -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """One scene from one camera, and where its renders go."""

    folder: str  # SAVE_DIR/train or SAVE_DIR/valid
    name: str
    source: str | int  # a file, or the number of a drawn scene
    camera: int  # the number of the camera in its file, or of the view of a drawn scene
    place: tuple  # what its random numbers follow from
    spp: int
    noisy: int  # noisy renders that are wanted
    clean: str  # the folder of its converged render, or ""

    def path(self, kind, k, options):
        """The file of a kind of the k-th render."""
        return os.path.join(self.folder, kind, f"{self.name}_{k}.{options.format}")

    def missing(self, options):
        """Which of its two parts, the noisy renders and the converged one, are still to be made."""
        kinds = [*renders.BUFFERS] + (["target"] if self.clean != "target" else [])
        parts = {"noisy": kinds, "clean": [self.clean] if self.clean else []}
        return [
            part
            for part, kinds in parts.items()
            if not all(os.path.isfile(self.path(kind, k, options)) for kind in kinds for k in range(self.noisy))
        ]


def plan(options, cameras):
    """All shots; `cameras` tells how many there are in each file."""
    drawn = not (options.scenes or options.valid_scenes)
    shots = []
    splits = ("train", options.scenes, options.n_scenes), ("valid", options.valid_scenes, options.n_valid)
    for split, files, count in splits:
        is_train, folder = split == "train", os.path.join(options.save_dir, split)
        if drawn:
            views = options.views if is_train else 1
            sources = [(f"scene{i:05d}" + f"v{v}" * bool(v), i, v) for i in range(count) for v in range(views)]
        else:
            sources = [(f"{Path(file).stem}_camera{i}", file, i) for file in files or [] for i in range(cameras[file])]
        names = [name for name, _, _ in sources]
        for place_in_list, (name, source, camera) in enumerate(sources):
            if names.count(name) > 1:
                raise UserError(f"--{'' if is_train else 'valid_'}scenes: two files would both become {name}")
            place = (options.seed, int(not is_train), *(name.encode() if isinstance(source, str) else [source]))
            # Shifted by one every fourth scene, because the kinds of scenes take turns, too, and there are four.
            spp = options.spp[(place_in_list + place_in_list // 4) % len(options.spp)]
            clean = ("clean" if options.clean_targets else "") if is_train else "target"
            noisy = options.n_renders if is_train else 1
            shots.append(Shot(folder, name, source, camera, place, spp, noisy, clean))
    if not shots:
        raise UserError("--n_scenes: there is nothing to render")
    return shots


def settings_of(options):
    """What decides over the pixels: a folder holds those of one setting."""
    names = ("seed", "size", "reference_spp", "n_renders", "format", "views")
    settings = {name: getattr(options, name) for name in names}
    spp = options.spp[0] if len(options.spp) == 1 else options.spp
    return settings | {"spp": spp, "drawn": not (options.scenes or options.valid_scenes)}


def claim(options):
    """Makes the folder ours, or sees that it is of the same settings."""
    record = os.path.join(options.save_dir, RECORD)
    if os.path.isfile(record):
        try:
            earlier = json.loads(Path(record).read_text(encoding="utf-8"))
            earlier = {"views": 1} | earlier  # earlier versions knew only one
            differing = [name for name, value in settings_of(options).items() if earlier[name] != value]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"--save_dir: {record} is no record of this script") from None
        if differing:
            name = differing[0]
            raise UserError(
                f"--save_dir: {options.save_dir} was begun with {name} {earlier[name]}; take another folder"
            )
    elif os.path.isdir(options.save_dir) and any(not name.startswith(".") for name in os.listdir(options.save_dir)):
        raise UserError(f"--save_dir: {options.save_dir} is not empty and holds no renders of this script")
    cli.writable_folder("--save_dir", options.save_dir)
    if not os.path.isfile(record):
        cli.write_json(record, settings_of(options))


# --- Work, in processes of their own: a renderer that dies takes only itself along ----------------------------

_shared: dict = {}


def start_worker(variant, threads, samples, stop):
    """Loads Mitsuba; `samples` counts what is rendered in all processes, `stop` ends a long render."""
    cli.start_worker()
    _shared.update(samples=samples, stop=stop)
    import drjit
    import mitsuba

    drjit.set_thread_count(threads)
    mitsuba.set_variant(variant)
    mitsuba.set_log_level(mitsuba.LogLevel.Error)


def count_cameras(path):
    """How many cameras a scene file has; it is parsed as a whole."""
    return len(load_file(path).sensors())


def load_file(path):
    """A scene of Mitsuba's."""
    import mitsuba

    try:
        own = path == OWN_SCENE and not os.path.exists(path)
        scene = mitsuba.load_dict(mitsuba.cornell_box()) if own else mitsuba.load_file(path, parallel=False)
        if not isinstance(scene, mitsuba.Scene) or not scene.sensors() or scene.integrator() is None:
            raise RuntimeError("it has no scene, no camera or no integrator")
        return scene
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"--scenes: {path}: {error}") from None


class Renderer:
    """Renders one shot: image, albedo and normals at once."""

    def __init__(self, shot, options):
        import mitsuba

        from denoising.data.scenes import draw_scene

        self.shot, self.options = shot, options
        self.drawn = isinstance(shot.source, int)
        if self.drawn:
            size = options.size or 256
            self.scene = mitsuba.load_dict(draw_scene(shot.place, size, size, shot.camera), parallel=False)
        else:
            self.scene = load_file(shot.source)
            self._resize(options.size)
        self.camera = self.scene.sensors()[0 if self.drawn else shot.camera]
        inner = self.scene.integrator()
        layers = {"type": "aov", "aovs": "albedo:albedo,normal:sh_normal", "image": inner}
        self.integrator = mitsuba.load_dict(layers)
        # A drawn scene is exposed like a photograph, by its first noisy render; a file's numbers stay as they are.
        self.exposure = 1.0
        if self.drawn:
            image = self.noisy(0)[0]
            self.exposure = 0.4 / max(np.minimum(image, np.percentile(image, 99)).mean(), 1e-6)

    def _resize(self, size):
        import mitsuba

        if size:
            scene = mitsuba.traverse(self.scene)
            for name in [name for name in scene.keys() if name.endswith(("film.size", "film.crop_size"))]:
                scene[name] = [size, size]
            scene.update()

    @functools.cache  # noqa: B019 - it lives as long as its shot
    def noisy(self, k):
        """The k-th noisy render with its buffers."""
        return self.render(k, self.shot.spp)

    def render(self, k, spp):
        """Returns the k-th render, its albedo and its normals: H x W x 3 float32, in linear light."""
        import mitsuba

        # A further view has noise of its own; that of the first is as it was before there were others.
        view = [self.shot.camera] * (self.drawn and self.shot.camera > 0)
        rng = np.random.default_rng([*self.shot.place, k, *view])
        width, height = self.camera.film().crop_size()
        at_once, total, done = max(1, PASS_SAMPLES // (width * height)), 0.0, 0
        while done < spp:
            if _shared["stop"].is_set():
                raise KeyboardInterrupt
            now = min(at_once, spp - done)
            seed = int(rng.integers(2**32))
            pixels = mitsuba.render(self.scene, sensor=self.camera, integrator=self.integrator, spp=now, seed=seed)
            total, done = total + np.array(pixels, np.float32) * np.float32(now / spp), done + now
            with _shared["samples"].get_lock():
                _shared["samples"].value += now * width * height
        if total.shape[2] not in (9, 10):
            raise UserError(
                f"{self.shot.source}: its film holds {total.shape[2] - 6} channels; pixel_format rgb is wanted"
            )
        if not np.isfinite(total).all():
            raise UserError(f"{self.shot.name}: the render holds NaN or infinite pixels; a material or light is wrong")
        # What shines more than a diffuse surface can, polished metal for one, is white.
        return total[..., :3], np.clip(total[..., -6:-3], 0, 1), total[..., -3:]


def work(shot, parts, options):
    """Renders what a shot lacks."""
    try:
        renderer = Renderer(shot, options)
        noisy = [renderer.noisy(k) for k in range(shot.noisy)] if "noisy" in parts else []
        clean = renderer.render(shot.noisy, options.reference_spp)[0] if "clean" in parts else None
    except RuntimeError as error:
        raise UserError(f"{shot.name}: Mitsuba says: {error}") from None
    for k, (image, albedo, normal) in enumerate(noisy):
        write(shot.path("albedo", k, options), "albedo", albedo)
        write(shot.path("normal", k, options), "normal", normal)
        write(shot.path("render", k, options), "render", image * renderer.exposure)
        if shot.clean != "target":
            # The next one of the ring: each render is an input once, and once a target.
            write(shot.path("target", k, options), "target", noisy[(k + 1) % shot.noisy][0] * renderer.exposure)
    if clean is not None:
        for k in range(shot.noisy):
            write(shot.path(shot.clean, k, options), shot.clean, clean * renderer.exposure)


def write(path, kind, buffer):
    """Writes a buffer as its suffix says: 16-bit float EXR, or 8-bit PNG."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if path.endswith(".png"):
        images.write_image(path, renders.as_picture(kind, buffer))
    else:
        images.write_image(path, buffer, like=Picture([buffer], format="EXR", exr={"half": True}))


def samples_of(shot, parts, options):
    """How many samples the parts of a drawn shot take, which is what its time follows."""
    spp = shot.spp * (shot.noisy if "noisy" in parts else 1) + options.reference_spp * ("clean" in parts)
    return spp * (options.size or 256) ** 2


# --- Main -----------------------------------------------------------------------------------------------------


def main(argv=None):
    """Plans, renders what is not there yet, and says how to train on it."""
    options = get_parser().parse_args(argv)
    for flag in ("scenes", "valid_scenes"):
        for path in getattr(options, flag) or []:
            if path != OWN_SCENE:
                cli.existing_file(f"--{flag}", path)
    check_variant(options.variant)
    threads = max(1, machine.cores() // options.workers)
    context = multiprocessing.get_context("spawn")
    samples, stop = context.Value("q", 0), context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(
        options.workers, context, start_worker, (options.variant, threads, samples, stop)
    )
    try:
        files = [*(options.scenes or []), *(options.valid_scenes or [])]
        shots = plan(options, dict(zip(files, pool.map(count_cameras, files), strict=True)))
        claim(options)
        with cli.only_process_in(options.save_dir):
            render_all(shots, options, pool, samples)
    except concurrent.futures.BrokenExecutor:
        raise UserError(
            f"--variant: a process with Mitsuba's {options.variant} died: for want of memory, or because it found no "
            "LLVM that it can use (scalar_rgb needs none)"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    print(f"{len(shots)} scenes in {options.save_dir}")
    return 0


def check_variant(variant):
    """Refuses what this Mitsuba does not have, or that Mitsuba is absent."""
    if importlib.util.find_spec("mitsuba") is None:
        raise UserError("rendering needs a package: pip install mitsuba")
    import mitsuba

    known = [name for name in mitsuba.variants() if name.endswith("_rgb")]
    usable = [name for name in known if runs_here(name)]
    cli.refuse(
        (variant not in known, f"--variant: {variant} is none of {', '.join(known)}"),
        (
            variant not in usable,
            f"--variant: {variant} cannot run on this machine, which has no {NEEDS.get(variant.split('_')[0])}; "
            f"{' and '.join(usable)} can",
        ),
    )


NEEDS = {"cuda": "NVIDIA GPU with its driver", "llvm": "LLVM library of a version that Mitsuba knows"}


def runs_here(variant):
    """Whether this machine has what a variant of Mitsuba computes with; asked without starting anything on it."""
    import drjit

    backend = {"cuda": drjit.JitBackend.CUDA, "llvm": drjit.JitBackend.LLVM}.get(variant.split("_")[0])
    return backend is None or drjit.has_backend(backend)


def render_all(shots, options, pool, samples):
    """Renders what the shots lack, with a bar over the samples of light."""
    todo = [(shot, parts) for shot in shots if (parts := shot.missing(options))]
    if len(todo) < len(shots):
        cli.note(f"{len(shots) - len(todo)} of {len(shots)} scenes are there already")
    total = sum(samples_of(shot, parts, options) for shot, parts in todo)
    waiting = {pool.submit(work, shot, parts, options) for shot, parts in todo}
    with cli.progress(total=total, unit=" samples", unit_scale=True, label="rendering") as bar:
        while waiting:
            done, waiting = concurrent.futures.wait(waiting, 0.5, concurrent.futures.FIRST_EXCEPTION)
            bar.update(samples.value - bar.n)
            for future in done:
                future.result()


if __name__ == "__main__":
    cli.run(main)
