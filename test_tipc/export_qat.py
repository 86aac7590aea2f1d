"""Makes the 8-bit model.pdmodel of weights that train_qat.py has trained, with the ranges that it has learnt.

    python test_tipc/export_qat.py --model_path=out/N2N_PACT/best_model.pdparams --save_dir=out

The model is run in 8 bits and compared with the network before it is put in place; less than --least dB is a failure.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.export import writing
from denoising.export.calibration import decibels
from denoising.export.paddle_quantization import quantise_program
from denoising.inference.checkpoint import load_network
from denoising.runtimes.choice import open_runtime, runtime_options


def get_parser():
    """The flags of export_model.py, and --least."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_path", required=True, help="the weights of train_qat.py")
    parser.add_argument("--save_dir", default="./output/", help="folder for the model; created if needed")
    parser.add_argument("--least", type=cli.number(float, 0), default=35.0, help="required PSNR to the network, in dB")
    parser.add_argument("--overwrite", action="store_true", help="also replace a model of other weights or in float")
    return parser


def main(argv=None):
    """Quantises in a temporary folder, compares, and puts the files in place."""
    options = get_parser().parse_args(argv)
    import paddle  # takes seconds: the flags are checked by now

    network, about = load_network(cli.existing_file("--model_path", options.model_path))
    ranges = about.get("ranges")
    if not ranges:
        raise cli.UserError(f"--model_path: {options.model_path} has no ranges; train_qat.py learns them")
    folder = Path(cli.writable_folder("--save_dir", options.save_dir))
    record = writing.record_of(network, about, "int8")
    writing.check_replaceable(folder, "pdmodel", record, options.overwrite)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        temporary = Path(temporary)
        channels = network.n_channel
        with tempfile.TemporaryDirectory() as float_folder:
            program = writing.export(network, Path(float_folder), "pdmodel")
            images = [writing.noisy_pictures(1, channels, 64, 96)]
            quantise_program(program, images, temporary, ranges=list(ranges.values()))
        image = writing.noisy_pictures(2, channels, 97, 130)
        with paddle.no_grad():
            expected = network(paddle.to_tensor(image)).numpy()
        runtime = open_runtime(runtime_options(model_dir=str(temporary), precision="int8"), trusted=True)
        quality = decibels([expected], [runtime(image)])
        print(f"PSNR of int8 against float: {quality:.2f} dB")
        if not quality >= options.least:
            cli.note(f"export failed: less than --least {options.least:g}, nothing was written")
            return 1
        writing.write_record(temporary, record)
        writing.put_in_place(temporary, folder, writing.PROGRAM["pdmodel"])
    print(folder / writing.PROGRAM["pdmodel"])
    return 0


if __name__ == "__main__":
    cli.run(main)
