"""Runs an HTTP service: POST an image, and it comes back denoised in the same format.

Examples:
  python tools/serve.py                                          # all weights that ship, chosen by each image's noise
  python tools/serve.py --models my_weights/                     # and some of one's own
  python tools/serve.py --model_path best_model.pdparams
  python tools/serve.py --model_path models/gauss5_50.pdparams --port 9000 --precision fp32 --max_megapixels 50
  python tools/serve.py --model_path best_model.pdparams --host 0.0.0.0 --max_queue 8 --access_log
  python tools/serve.py --model_dir output/ --runtime openvino

  curl --data-binary @noisy.png "http://127.0.0.1:8000/denoise?strength=0.8" -o denoised.png
  python tools/serve_client.py --image_path photos/ --save_dir denoised/

GET / is a page to try it in a browser, /health is for load balancers, and /metrics for Prometheus. The service prints
its address once it is ready; after SIGTERM or Ctrl-C it finishes the images that it has. It asks for no password and
does not encrypt, so only this machine can reach it unless --host says otherwise. docs/serving.md has the details.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.cli import UserError, number
from denoising.inference import auto, devices
from denoising.inference.checkpoint import load_network
from denoising.inference.denoiser import Denoiser, needs_fp32
from denoising.runtimes import choice
from denoising.serving.image_process import ImageProcesses
from denoising.serving.models import ManyModels, OneModel
from denoising.serving.pipeline import ExportedNetwork

IMAGE_PROCESSES = 2
RESERVED = ("auto", "none")  # in requests and answers: the choice by noise, and no model at all


def get_parser():
    """All flags."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("model").add_argument
    add(
        "--models",
        help="a folder of .pdparams files that are served beside those that ship; what noise each is for "
        "stands in the file, or requests name it",
    )
    add("--model_path", help="instead of all these, one file of weights, .pdparams or .pth")
    add("--model_dir", help="or a folder that export_model.py wrote")
    add("--model_file", help="or one exported program: .pdmodel, .json or .onnx")
    add("--runtime", choices=choice.RUNTIMES, default="paddle", help="what runs an exported model")
    add = parser.add_argument_group("service").add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 or :: listens on all of this machine's")
    add("--port", type=number(int, 0, 65535), default=8000, help="port to listen on; 0 takes any that is free")
    add("--allowed_hosts", nargs="+", metavar="NAME",
        help="names by which the service may be called, those that a proxy passes on, beside localhost and all "
        "addresses (default: any, but no others by browsers where only this machine reaches --host)")  # fmt: skip
    add("--max_mb", type=number(float, 0.001, 2000), default=50, help="megabytes that an upload may have")
    add("--max_megapixels", type=number(float, 0.01, 500), default=25,
        help="megapixels that an image may have, all its pages together")  # fmt: skip
    add("--max_queue", type=number(int, 1, 10000), default=32,
        help="images in work at a time; further ones are answered with 503, try again")  # fmt: skip
    add("--max_connections", type=number(int, 1, 100000), default=256, help="connections open at a time")
    add("--timeout", type=number(float, 0.1, 86400), default=120, help="seconds for an image, its wait included")
    add("--transfer_timeout", type=number(float, 0.1, 86400), default=60, help="seconds for an upload or a download")
    add("--decode_timeout", type=number(float, 0.1, 86400), default=10, help="seconds to decode an upload")
    add("--stop_timeout", type=number(float, 0, 86400), default=30,
        help="seconds that the images in work are given when the service is told to stop")  # fmt: skip
    add("--keep_mb", type=number(float, 0, 100000), default=1000,
        help="megabytes of denoised images that are kept in case they are asked for with other amounts or in another "
        "format; 12 for each megapixel, and none where memory is short")  # fmt: skip
    add("--keep_minutes", type=number(float, 0, 1440), default=10, help="since it was last asked for")
    add("--access_log", action="store_true", help="write a line to stderr for each request")
    add = parser.add_argument_group("computing").add_argument
    add("--max_batch", type=number(int, 1, 256), default=8, help="windows of one size that are computed at once")
    add("--max_wait_ms", type=number(float, 0, 10000), default=0,
        help="milliseconds that a window waits for others of its size")  # fmt: skip
    add("--tile", type=number(int, 352),
        help="side of the largest window in pixels; chosen by the free memory unless given")  # fmt: skip
    devices.add_flags(parser, ("auto", *choice.PRECISIONS), "; fp16 and int8 are for exported models")
    return parser


def check_model(options):
    """Refuses what names no model; returns the options of the runtime for an exported one, or None for weights."""
    exported = bool(options.model_dir or options.model_file)
    flags = options.models, options.model_path, options.model_dir, options.model_file
    named = sum(flag is not None for flag in flags)
    fits_weights = options.runtime == "paddle" and options.precision in devices.FASTEST
    cli.refuse(
        (named > 1, "--model_path: give one of --models, --model_path, --model_dir, --model_file, or none of them"),
        (
            not exported and not fits_weights,
            "--runtime, --precision: weights run on this project's engine in fp32 or bf16",
        ),
        (exported and options.engine != "auto", "--engine: runs weights; what runs an exported model is --runtime"),
    )
    if not exported:
        if options.model_path is not None:
            cli.existing_file("--model_path", options.model_path)
        return None
    chosen = {name: getattr(options, name) for name in ("model_dir", "model_file", "runtime", "precision")}
    chosen["precision"] = "fp32" if options.precision == "auto" else options.precision
    chosen = choice.runtime_options(**chosen, use_gpu=options.device == "gpu")
    choice.find_model(chosen)
    return chosen


def name_of(flag, path):
    """The name by which requests ask for a model."""
    name = Path(path).stem
    cli.refuse((name in RESERVED, f"{flag}: {path}: no model can be called {name}: rename the file"))
    return name


def load(options, exported):
    """The one model that a flag names, or those that ship and what --models adds."""
    if exported:
        import paddle

        paddle.set_device("cpu")
        runtime = choice.open_runtime(exported)
        cli.note(runtime.describe())
        denoiser = Denoiser(ExportedNetwork(runtime), tile=options.tile)
        denoiser.options = runtime.record.get("options", {})  # with the noise, whose known frequencies are put back
        flag = "--model_dir" if options.model_dir else "--model_file"
        path = Path(options.model_dir or options.model_file).resolve()
        return OneModel(name_of(flag, path), denoiser, flag)
    if options.model_path:
        network, saved = load_network(options.model_path)
        if options.precision == "auto" and needs_fp32(network, saved):
            options.precision = "fp32"
        network.ops = devices.prepare(options)
        denoiser = Denoiser(network, tile=options.tile)
        denoiser.options = saved
        if not denoiser.takes_images:
            raise UserError("--model_path: this network takes buffers beside the image: use predict.py")
        return OneModel(name_of("--model_path", options.model_path), denoiser, "--model_path")
    paths = auto.shipped_weights("--models")
    if options.models is not None:
        own = sorted(Path(cli.existing_folder("--models", options.models)).glob("*.pdparams"))
        cli.refuse((not own, f"--models: no .pdparams file in {options.models}"))
        paths += [path for path in own if name_of("--models", path)]
    return ManyModels(auto.Shelf(paths, devices.prepare(options)))


def main(argv=None):
    """Checks everything, takes the address, loads the network, and serves until it is told to stop."""
    options = get_parser().parse_args(argv)
    exported = check_model(options)
    try:
        from denoising.serving import connections, service
    except ImportError as error:
        if error.name != "aiohttp":
            raise
        raise UserError("the service needs aiohttp: pip install -r requirements-serve.txt") from None
    with connections.bound_socket(options.host, options.port) as listener:
        processes = ImageProcesses(IMAGE_PROCESSES, int(options.max_megapixels * 1e6))
        try:
            asyncio.run(service.Service(options, load(options, exported), processes).run(listener))
        finally:
            processes.end()
    return 0


if __name__ == "__main__":
    cli.run(main)
