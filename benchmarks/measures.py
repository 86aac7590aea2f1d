"""The measurements of benchmarks/run.py, each of which gets a process of its own and prints a line of JSON.

    python benchmarks/measures.py subsampler '{"rounds": 5}'

A function takes the values of the JSON text, and returns numbers or lists of them; times are in seconds.
"""

import contextlib
import io
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import machine

SIGMA = "gauss25"
RATE = 1e-4  # of learning


def timed(function, *arguments):
    """The seconds of one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def repeated(function, times, clock=time.perf_counter):
    """The seconds of one call, on average over some."""
    start = clock()
    for _ in range(times):
        function()
    return (clock() - start) / times


def in_turn(functions, rounds, times=5):
    """CPU seconds of each function, which must stay on one thread, in turn A B A B, the first round not counted."""
    found = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            seconds = repeated(function, times, time.thread_time)
            if i:
                found[name].append(seconds)
    return found


def used():
    """CPU seconds of this process and of those that it has started and seen end."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


# --- Preparing images ------------------------------------------------------------------------------------------


def dataset_tool(source, target, workers):
    """Our tool on a folder; the imports are not in the time."""
    import dataset_tool

    arguments = ["--input_dir", source, "--save_dir", target, "--workers", workers]
    before = used()
    return timed(dataset_tool.main, arguments), used() - before, _count(target)


def dataset_published(source, target):
    """As published: each image is opened, filtered by size, converted and saved, one after the other."""
    from PIL import Image

    def convert():
        Path(target).mkdir()
        for path in sorted(Path(source).rglob("*")):
            if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".bmp"):
                continue
            with Image.open(path) as image:
                if min(image.size) >= 256 and max(image.size) <= 512:
                    image.convert("RGB").save(Path(target, path.name), quality=100, subsampling=0)

    before = used()
    return timed(convert), used() - before, _count(target)


def _count(folder):
    return sum(path.is_file() for path in Path(folder).glob("[!.]*"))


# --- Sub-sampler -----------------------------------------------------------------------------------------------

# The published order of the eight pairs.
PUBLISHED_PAIRS = np.array([[0, 1], [0, 2], [1, 3], [2, 3], [1, 0], [2, 0], [3, 1], [3, 2]])


def picks_of_published(index):
    """Turns published pair numbers 0..7, [H/2, W/2], into the bits of `draw_picks`."""
    first, second = PUBLISHED_PAIRS[index, 0], PUBLISHED_PAIRS[index, 1]
    return np.stack([first // 2 == 1, first % 2 == 1, first % 2 == second % 2])


def subsampler(rounds, size=256):
    """Drawing and splitting a batch of four, against the published algorithm written plainly."""
    import paddle
    import paddle.nn.functional as F

    from denoising.training.methods import draw_picks, subimages

    count, channels, cells = 4, 3, size // 2
    image = paddle.rand([count, channels, size, size])
    rng = np.random.default_rng(0)
    pairs = paddle.to_tensor(PUBLISHED_PAIRS)

    def draw_masks(index):
        picked = paddle.gather(pairs, index) + 4 * paddle.arange(index.shape[0]).unsqueeze(1)
        zeros = paddle.zeros([4 * index.shape[0]], "int64")
        ones = paddle.ones([index.shape[0]], "int64")
        return [paddle.scatter(zeros, picked[:, i], ones).astype("bool") for i in (0, 1)]

    def select(mask):
        parts = []
        for channel in range(channels):
            cell = F.unfold(image[:, channel : channel + 1], 2, strides=2)  # [N, 4, cells^2]
            chosen = paddle.masked_select(cell.transpose([0, 2, 1]).reshape([-1]), mask)
            parts.append(chosen.reshape([count, 1, cells, cells]))
        return paddle.concat(parts, axis=1)

    def plain():
        return [select(mask) for mask in draw_masks(paddle.randint(0, 8, [count * cells * cells]))]

    def ours():
        picks = np.stack([draw_picks(rng, size, size) for _ in range(count)])
        return subimages(image, paddle.to_tensor(picks))

    # Both do the same: equal results for equal draws.
    index = rng.integers(0, 8, (count, cells, cells))
    picks = np.stack([picks_of_published(numbers) for numbers in index])
    expected = [select(mask) for mask in draw_masks(paddle.to_tensor(index.reshape(-1)))]
    for a, b in zip(subimages(image, paddle.to_tensor(picks)), expected, strict=True):
        assert bool((a == b).all())
    return in_turn({"ours": ours, "plain": plain}, rounds)


# --- Training --------------------------------------------------------------------------------------------------


def _training(folder, batch, patch, precision):
    """What train.py trains with, ready for its first step."""
    from denoising.inference import devices
    from denoising.training.options import get_parser, parse_options
    from denoising.training.state import Training

    flags = ["--data_dir", folder, "--noisetype", SIGMA, "--batchsize", batch, "--patchsize", patch]
    flags += ["--precision", precision]
    options, _ = parse_options(get_parser(), flags)
    return Training(options, devices.prepare(options)), options


def loading(folder, batch, patch, precision, rounds, steps):
    """Loader alone, loop with a prepared batch, loop that loads: from JPEG each time, and from the cache."""
    import dataset
    import train
    from denoising.training.methods import Neighbor2Neighbor

    training, options = _training(folder, batch, patch, precision)
    method = Neighbor2Neighbor()
    loaders = {}
    for name, cache_gb in (("JPEG", 0), ("cached", 8)):
        patches = train.training_images(options.but(cache_gb=cache_gb), method)
        loaders[name] = dataset.Batches(patches, batch, options.seed, workers=options.workers)
        if cache_gb:
            for index in range(len(patches)):
                patches.sample(0, index)
    ready = loaders["cached"].batch(0)

    def step(arrays):
        training.train_on(method, arrays, RATE, 1.0)[0].item()

    found = {f"{name} {what}": [] for name in loaders for what in ("alone", "wait", "loop")} | {"step": []}
    position = 0
    for i in range(rounds + 1):
        measured = {"step": repeated(lambda: step(ready), steps)}
        for name, loader in loaders.items():
            position += 1000
            # Alone: from nothing ready to the last batch, as fast as the threads can.
            stream = loader.starting_at(position)
            count = 4 * steps
            measured[f"{name} alone"] = repeated(stream.__next__, count)
            stream.close()
            # In the loop, once the first batches lie ready, as after the first step of a training.
            stream = loader.starting_at(position)
            step(next(stream))
            waited, start = 0.0, time.perf_counter()
            for _ in range(steps):
                before = time.perf_counter()
                arrays = next(stream)
                waited += time.perf_counter() - before
                step(arrays)
            measured[f"{name} loop"] = (time.perf_counter() - start) / steps
            measured[f"{name} wait"] = waited / steps
            stream.close()
        if i:
            for name, seconds in measured.items():
                found[name].append(seconds)
    return found


def around(folder, precision, rounds, batch=4, patch=256):
    """The parts of the published step that are no convolutions, and the step itself."""
    import paddle

    from denoising.imaging.noise import parse_noise
    from denoising.training.methods import Neighbor2Neighbor, draw_picks, subimages

    training, options = _training(folder, batch, patch, precision)
    model, method = parse_noise(SIGMA), Neighbor2Neighbor()
    rng = np.random.default_rng(0)
    clean = rng.random((batch, patch, patch, 3), np.float32)

    step = (  # what dataset.Batches gives
        np.ascontiguousarray(np.stack([model.add(image, rng) for image in clean]).transpose(0, 3, 1, 2)),
        np.stack([draw_picks(rng, patch, patch) for _ in range(batch)]),
    )
    noisy, picks = map(paddle.to_tensor, step)
    # In the network's place: results that are there already, and that the loss is differentiated to.
    results = {side: paddle.rand([batch, 3, side, side]) for side in (patch, patch // 2)}
    results[patch // 2].stop_gradient = False
    training.train_on(method, step, RATE, 1.0)
    for parameter in training.network.parameters():
        parameter.grad = paddle.full_like(parameter, 1e-3)

    def losses():
        loss = method(lambda x: results[x.shape[2]], noisy, picks, 1.0)[0]
        loss.backward()
        loss.item()
        results[patch // 2].clear_grad()

    functions = {
        "noise": lambda: [model.add(image, rng) for image in clean],
        "picks": lambda: np.stack([draw_picks(rng, patch, patch) for _ in range(batch)]),
        "to tensors": lambda: [paddle.to_tensor(array) for array in step],
        "sub-images": lambda: subimages(noisy, picks),
        "losses": losses,  # with the sub-images of both passes, forward and backward
        "optimizer": lambda: training.optimizer.step(RATE, training.scaler),
        "average": training._average,
    }
    # The whole step changes the gradients, so it has a training of its own.
    whole, _ = _training(folder, batch, patch, precision)
    found = {name: [] for name in [*functions, "step"]}
    for i in range(rounds + 1):
        seconds = {name: repeated(function, 3) for name, function in functions.items()}
        seconds["step"] = timed(lambda: whole.train_on(method, step, RATE, 1.0)[0].item())
        if i:
            for name, value in seconds.items():
                found[name].append(value)
    return found


# --- Denoising -------------------------------------------------------------------------------------------------


def _denoiser(engine_name, precision, n_feature=48):
    import paddle

    from arch_unet import build_network
    from denoising.engine import operators
    from denoising.inference.denoiser import Denoiser

    paddle.seed(0)
    network = build_network(n_feature=n_feature)
    network.eval()
    network.ops, _ = operators.choose(engine_name, precision)
    return Denoiser(network)


def val_and_predict(val_dirs, image, target, engine_name, precision, limit, warm):
    """Seconds per megapixel of what val.py does with one set, and predict.py with one file."""
    from denoising.data.validation import find_validation_sets
    from denoising.files import images
    from denoising.imaging.noise import parse_noise
    from denoising.inference.evaluation import evaluate

    denoiser = _denoiser(engine_name, precision)
    validation_set = find_validation_sets(val_dirs)[0][0]
    noise = parse_noise(SIGMA)
    for _ in range(1 + warm):
        scores = evaluate(denoiser, validation_set, noise, repeats=1, limit=limit)

    def denoise_file():
        picture = images.read_image(image)
        images.write_image(target, [denoiser(page) for page in picture.pages], like=picture)

    megapixels = np.prod(images.image_size(image)) / 1e6
    for _ in range(1 + warm):
        seconds = timed(denoise_file)
    return {"val.py": scores.seconds / scores.megapixels, "predict.py": seconds / megapixels}


def working_memory(engine_name, precision, side):
    """Peak bytes of one pass per pixel of its window, beyond what the process had before."""
    denoiser = _denoiser(engine_name, precision)
    small, window = (np.zeros((1, 3, size, size), np.float32) for size in (64, side))
    denoiser.run_batch(small)
    window += 0.5  # memory that is really there, so that it does not count
    before = machine.used_memory("VmRSS")
    denoiser.run_batch(window)
    measured = (machine.used_memory("VmHWM") - before) / side**2
    return {"measured": measured, "planned": denoiser.network.ops.bytes_per_pixel * denoiser.network.memory}


def predict_memory(weights, image, folder, flags):
    """Peak memory of `predict.py` as a whole, and its time."""
    import predict

    before = machine.used_memory("VmHWM")
    arguments = ["--image_path", image, "--model_path", weights, "--save_dir", folder, "--overwrite", *flags]
    seconds = timed(predict.main, arguments)
    return {"peak": machine.used_memory("VmHWM"), "start": before, "seconds": seconds}


def make_weights(path, n_feature):
    """A network as it is before training: its work is the same."""
    from denoising.inference import checkpoint

    network = _denoiser("paddle", "fp32", n_feature).network
    checkpoint.save_network(path, checkpoint.network_state(network), {**network.options, "noisetype": SIGMA})


def engines():
    """Which ways to compute this machine has, and the versions."""
    import cv2
    import PIL

    from denoising import cli
    from denoising.engine import operators
    from denoising.inference import devices

    found = ["paddle fp32"]
    for precision in ("fp32", "bf16"):
        with contextlib.suppress(cli.UserError):
            operators.choose("onednn", precision)
            found.insert(0, f"onednn {precision}")
    return {"engines": found, "versions": devices.versions() | {"pillow": PIL.__version__, "opencv": cv2.__version__}}


def call(name, values):
    """What a measurement of this name returns; what the scripts print meanwhile is not wanted."""
    with contextlib.redirect_stdout(io.StringIO()):
        return globals()[name](**values)


if __name__ == "__main__":
    print(json.dumps(call(sys.argv[1], json.loads(sys.argv[2]))))
