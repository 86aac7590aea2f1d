"""Exports trained weights for Paddle Inference, ONNX Runtime or OpenVINO, and checks that the result computes the same.

    python export_model.py --model_path best_model.pdparams --save_dir ./output/
    python export_model.py --model_path best_model.pdparams --save_dir ./output/ --format onnx

The first command writes `model.pdmodel` and `model.pdiparams`, which take any batch, height and width; and
`deploy.json`, which holds the network's options and the checksums by which `infer.py` recognises a broken or mixed
pair. The second writes `model.onnx`, which has all of that in one file. Before anything is put in place, the export is
run by the real runtime (Paddle Inference without and with oneDNN, or ONNX Runtime and OpenVINO as far as they are
installed) and compared with the network on two odd sizes. A difference above 1e-4 is a failure (exit code 1).

Existing files are replaced only with --overwrite, but an intact export of the very same weights may always be made
again in the same precision. `--format json` writes Paddle 3's own program format, `model.json`; `model.pdmodel` is
read by Paddle 2 and 3, and is faster with oneDNN.
"""

import tempfile
from pathlib import Path

from denoising import cli
from denoising.cli import UserError
from denoising.export import writing
from denoising.export.writing import PARAMS, PROGRAM
from denoising.runtimes.choice import open_runtime, runtime_options

TOLERANCE = 1e-4


def get_parser():
    """The published flags under their published names, and ours."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--model_path", required=True, help="trained weights, a .pdparams file")
    add("--save_dir", default="./output/", help="folder for the export; created if needed")
    add("--format", choices=PROGRAM, default="pdmodel",
        help="pdmodel and json are for Paddle Inference, onnx for ONNX Runtime and OpenVINO")  # fmt: skip
    add("--overwrite", action="store_true", help="also replace an export of other weights, or one in 8 bits")
    return parser


def main(argv=None):
    """Exports into a temporary folder, compares, and puts the files in place."""
    options = get_parser().parse_args(argv)
    cli.existing_file("--model_path", options.model_path)
    runtimes = writing.installed_runtimes()
    if options.format == "onnx" and not runtimes:
        raise UserError("--format: to compare the ONNX file, onnxruntime or openvino is needed: pip install openvino")
    folder = Path(cli.writable_folder("--save_dir", options.save_dir))

    # Paddle takes seconds to import: the flags are checked by now.
    import paddle

    if options.format == "json" and not hasattr(paddle.pir_utils, "OldIrGuard"):
        raise UserError(f"--format: Paddle {paddle.__version__} cannot write model.json, 3.0 and later can")
    network, facts = writing.load_exportable(options.model_path)
    record = writing.record_of(network, facts)
    writing.check_replaceable(folder, options.format, record, options.overwrite)

    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary, writing.full_disk_named(folder):
        temporary = Path(temporary)
        program = writing.write(network, temporary, options.format, record)
        onnx = options.format == "onnx"
        ways = {name: {"runtime": name} for name in runtimes} if onnx else {
            "oneDNN off": {"enable_mkldnn": False}, "oneDNN on ": {"enable_mkldnn": True}}  # fmt: skip
        record["largest_difference"] = 0.0
        for name, way in ways.items():
            settings = runtime_options(model_file=str(program), cpu_threads=1, **way)
            difference = writing.largest_difference(network, open_runtime(settings, trusted=True))
            print(f"largest difference from the network, {name}: {difference:.2e}")
            # Also true for NaN.
            if not difference <= TOLERANCE:
                cli.note(f"export failed: the difference is above {TOLERANCE:g}, nothing was written")
                return 1
            record["largest_difference"] = max(difference, record["largest_difference"])
        if not onnx:
            writing.write_record(temporary, record)
        writing.put_in_place(temporary, folder, program.name)
    print(folder / program.name)
    if not onnx:
        print(folder / PARAMS)
    return 0


if __name__ == "__main__":
    cli.run(main)
