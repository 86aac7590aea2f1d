"""Makes an 8-bit model of trained weights, calibrated on noisy images alone, and measures what quality it loses.

    python tools/quantize_model.py --model_path best_model.pdparams --images my_noisy_images --save_dir ./output/
    python tools/quantize_model.py --model_path best_model.pdparams --images clean_photos --noise gauss25 --method mse
    python infer.py --runtime openvino --precision int8 --model_dir output --input_file demo/astronaut_noise.png

The images should look like those that will be denoised, and must not be those on which the model will be scored. Two
dozen are enough. With `--noise`, they are clean images to which that noise is added, and the loss against them is
printed as well. Two thirds of the crops determine the ranges, the others measure the result.

Weights get a scale for each output channel, activations a range by `--method`: the smallest Kullback-Leibler
divergence (kl), the smallest squared error (mse), the 99.999th percentile, or the largest number (absmax). A search
measures which layers lose much and cost little, and leaves these in float. `model_int8.onnx` is executed in 8 bits by
OpenVINO and ONNX Runtime. `--format pdmodel` writes an 8-bit `model.pdmodel` for Paddle Inference instead, by Paddle's
own quantisation. A result that is farther from the float network than `--least` allows is not written (exit code 1).
See docs/deployment.md.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli, machine
from denoising.cli import UserError, number
from denoising.export import calibration, writing
from denoising.export.quantization import METHODS
from denoising.export.writing import PROGRAM
from denoising.imaging.noise import list_of_noise, noise_of_flag


def get_parser():
    """The flags."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_path", required=True, help="trained weights, a .pdparams file")
    add = parser.add_argument_group("calibration").add_argument
    add("--images", required=True, help="folder of noisy images, or of clean ones if --noise is given")
    add("--noise", default="none", help=f"noise to add to the images first: {list_of_noise()}")
    add("--method", choices=METHODS, default="kl", help="how the range of an activation is chosen")
    add("--crops", type=number(int, 3, 1000), default=24, help=f"crops of {calibration.SIDE} pixels a side to take")
    add("--float_layers", default="auto",
        help="layers to leave in float: names separated by commas, none, or auto for a search")  # fmt: skip
    add("--float_budget", type=number(float, 0, 1), default=0.01, help="share of the work that auto may leave in float")
    add("--runtime", choices=["auto", "openvino", "onnxruntime"], default="auto", help="what calibrates and measures")
    add("--seed", type=number(int, 0), default=0, help="seed of the crops and the noise")
    add = parser.add_argument_group("output").add_argument
    add("--save_dir", default="./output/", help="folder for the model; created if needed")
    add("--format", choices=["onnx", "pdmodel"], default="onnx",
        help="onnx is for OpenVINO and ONNX Runtime, pdmodel for Paddle Inference")  # fmt: skip
    add("--name", default="model_int8.onnx", help="name of the .onnx file")
    add("--least", type=number(float, 0, 200), default=40.0, help="required PSNR against the float network, in dB")
    add("--overwrite", action="store_true", help="also replace a model of other weights, or one in float")
    add("--json", action="store_true", help="print the result as JSON, everything else to stderr")
    return parser


def main(argv=None):
    """Calibrates in a temporary folder, measures, and puts the file in place."""
    options = get_parser().parse_args(argv)
    cli.existing_file("--model_path", options.model_path)
    if Path(options.name).name != options.name or not options.name.endswith(".onnx"):
        raise UserError(f"--name: {options.name} is no plain name that ends in .onnx")
    noise = noise_of_flag("--noise", options.noise)
    installed = writing.installed_runtimes()
    runtime = options.runtime if options.runtime != "auto" else next(
        (name for name in ("openvino", "onnxruntime") if name in installed), None)  # fmt: skip
    if runtime not in installed:
        missing = f"the package {runtime}" if runtime else "openvino or onnxruntime"
        raise UserError(f"--runtime: {missing} is needed: pip install {runtime or 'openvino'}")
    folder = Path(cli.writable_folder("--save_dir", options.save_dir))

    network, facts = writing.load_exportable(options.model_path)
    record = writing.record_of(network, facts, "int8")
    record["calibration"] = {"method": options.method, "noise": options.noise, "seed": options.seed}
    writing.check_replaceable(folder, options.format, record, options.overwrite, options.name)
    crops = calibration.read_crops("--images", options.images, noise, network.n_input, options.seed, options.crops)
    floats = options.float_layers if options.float_layers == "auto" else set(options.float_layers.split(",")) - {"none"}
    # Which layers stay in float is found by running the file.
    unable = not machine.adds_bytes_exactly()
    cli.refuse((unable, "8 bits are calibrated by computing in them, for which this CPU lacks VNNI instructions"))

    with tempfile.TemporaryDirectory(dir=folder, prefix=".quantise-") as temporary, writing.full_disk_named(folder):
        temporary = Path(temporary)
        made = calibration.quantise(
            network, record, crops, options.method, runtime, floats, options.float_budget, options.format, temporary
        )
        # Also true for NaN.
        if not made.decibels >= options.least:
            cli.note(
                f"quantisation failed: {made.decibels:.2f} dB against the float network are less than --least "
                f"{options.least:g}, nothing was written"
            )
            return 1
        program = options.name
        if options.format == "onnx":
            (temporary / program).write_bytes(made.data)
        else:
            program = PROGRAM["pdmodel"]
            writing.write_record(temporary, record)
        files = [folder / path.name for path in sorted(temporary.iterdir())]
        writing.put_in_place(temporary, folder, program)
    report(made, crops, files, options)
    return 0


def report(made, crops, files, options):
    """Prints what was made and what quality it loses."""
    loss = made.psnr_float - made.psnr if made.psnr is not None else None
    if options.json:
        facts = {
            "files": [str(path) for path in files], "method": options.method, "float_layers": made.floats,
            "gains": made.gains, "psnr_against_float": made.decibels, "psnr_float": made.psnr_float,
            "psnr_int8": made.psnr, "loss": loss, "measured_by": made.measured_by,
        }  # fmt: skip
        print(json.dumps(facts, indent=2))
        return
    print(f"{len(crops)} crops, {options.method}; measured on a third of them by {made.measured_by}")
    gained = (f"{name} (+{made.gains[name]:.1f} dB)" if name in made.gains else name for name in made.floats)
    print(f"left in float: {', '.join(gained) or 'no layer'}")
    print(f"PSNR of int8 against float: {made.decibels:.2f} dB")
    if loss is not None:
        print(f"PSNR against the clean crops: float {made.psnr_float:.3f}, int8 {made.psnr:.3f}: {-loss:+.3f} dB")
    for path in files:
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    cli.run(main)
