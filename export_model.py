"""Exports trained weights for runtimes: Paddle Inference, ONNX Runtime, OpenVINO; and proves that it computes the same.

    python export_model.py --model_path best_model.pdparams --save_dir ./output/
    python export_model.py --model_path best_model.pdparams --save_dir ./output/ --format onnx

The first writes `model.pdmodel` and `model.pdiparams` (any batch, height and width), and `deploy.json`: their
checksums, by which `infer.py` tells a broken or mixed pair, and the network's options. The second writes `model.onnx`,
which has all of that in one file. The export is loaded into the real runtime (Paddle's without and with oneDNN, or
each of ONNX Runtime and OpenVINO that is installed) and compared with the network on two odd sizes before anything is
put in place; a difference above 1e-4 is a failure (exit 1).

Nothing is replaced unasked, with one exception: an intact export of the very same weights may be made
again. `--format json` writes Paddle 3's own program format, `model.json`; `model.pdmodel` is read by
both Paddle versions and is faster under oneDNN.
"""

import tempfile
import warnings
from pathlib import Path

from denoising import cli
from denoising.cli import UserError
from denoising.export import writing
from denoising.export.writing import PARAMS, PROGRAM
from denoising.runtimes.paddle_inference import engine_options, open_engine

TOLERANCE = 1e-4


def get_parser():
    """The published flags under their published names, and ours."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_path", required=True, help="the .pdparams weights")
    parser.add_argument("--save_dir", default="./output/", help="where the export goes; created if needed")
    parser.add_argument("--format", choices=PROGRAM, default="pdmodel", help="of the program")
    parser.add_argument("--overwrite", action="store_true", help="replace an export of other weights")
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
    warnings.filterwarnings("ignore", "No ccache found")
    import paddle

    if options.format == "json" and not hasattr(paddle.pir_utils, "OldIrGuard"):
        raise UserError(f"--format: Paddle {paddle.__version__} cannot write model.json, 3.0 and later can")
    network, facts = writing.load_exportable(options.model_path)
    record = writing.record_of(network, facts)
    writing.check_replaceable(folder, options.format, record["weights"], options.overwrite)

    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary, writing.full_disk_named(folder):
        temporary = Path(temporary)
        program = writing.write(network, temporary, options.format, record)
        onnx = options.format == "onnx"
        ways = {name: {"runtime": name} for name in runtimes} if onnx else {
            "oneDNN off": {"enable_mkldnn": False}, "oneDNN on ": {"enable_mkldnn": True}}  # fmt: skip
        record["largest_difference"] = 0.0
        for name, way in ways.items():
            engine = open_engine(engine_options(model_file=str(program), cpu_threads=1, **way))
            difference = writing.largest_difference(network, engine)
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
