"""Makes the 8-bit model.pdmodel of weights that train_qat.py has trained, with the ranges that it has learnt.

    python test_tipc/export_qat.py --model_path=out/N2N_PACT/best_model.pdparams --save_dir=out

The model is run in 8 bits and compared with the network before it is put in place; less than --least dB is a failure.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import numpy as np
import paddle
from paddle.static.quantization import PostTrainingQuantization

from denoising import cli
from denoising.export import writing
from denoising.inference.checkpoint import load_network
from denoising.runtimes.paddle_inference import captured, engine_options, open_engine

FILES = {"model_filename": "model.pdmodel", "params_filename": "model.pdiparams"}


class LearntRanges(PostTrainingQuantization):
    """Paddle's quantisation with given ranges of the inputs of its convolutions, in the order of the program."""

    def __init__(self, ranges, **more):
        super().__init__(**more)
        self.ranges = ranges

    def _update_program(self):
        inputs = [op.input("Input")[0] for op in self._program.global_block().ops if op.type == "conv2d"]
        for name, bound in zip(inputs, self.ranges, strict=False):  # the last has none
            self._quantized_threshold[name] = bound
        super()._update_program()


def get_parser():
    """As of export_model.py, and --least."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_path", required=True, help="the weights of train_qat.py")
    parser.add_argument("--save_dir", default="./output/", help="where the model goes; created if needed")
    parser.add_argument("--least", type=cli.number(float, 0), default=35.0, help="dB of PSNR against the network")
    parser.add_argument("--overwrite", action="store_true", help="replace a model of other weights")
    return parser


def quantise(network, ranges, folder):
    """Writes the 8-bit program and weights into a folder."""
    image = writing.noisy_pictures(1, network.options["n_channel"], 64, 96)
    with tempfile.TemporaryDirectory() as temporary:
        writing.export(network, Path(temporary), "pdmodel")
        scope = paddle.static.Scope()
        with captured(), paddle.pir_utils.OldIrGuard(), paddle.static.scope_guard(scope):
            paddle.enable_static()
            try:
                quantiser = LearntRanges(
                    ranges, executor=paddle.static.Executor(paddle.CPUPlace()), scope=scope, model_dir=temporary,
                    data_loader=lambda: iter([{"x": image}]), batch_size=1, batch_nums=1, algo="abs_max",
                    onnx_format=True, quantizable_op_type=["conv2d"], weight_quantize_type="channel_wise_abs_max",
                    activation_quantize_type="range_abs_max", skip_tensor_list=[last_input(Path(temporary))], **FILES,
                )  # fmt: skip
                quantiser.quantize()
                quantiser.save_quantized_model(str(folder), **FILES)
            finally:
                paddle.disable_static()


def last_input(folder):
    """The tensor that goes into the last convolution, which stays in float."""
    # Held by a name: its blocks do not keep it alive.
    program = paddle.base.core.ProgramDesc((folder / FILES["model_filename"]).read_bytes())
    block = program.block(0)
    operators = [block.op(index) for index in range(block.op_size())]
    return [op.input("Input")[0] for op in operators if op.type() == "conv2d"][-1]


def main(argv=None):
    """Quantises in a temporary folder, compares, and puts the files in place."""
    options = get_parser().parse_args(argv)
    network, about = load_network(cli.existing_file("--model_path", options.model_path))
    ranges = about.get("ranges")
    if not ranges:
        raise cli.UserError(f"--model_path: {options.model_path} has no ranges; train_qat.py learns them")
    folder = Path(cli.writable_folder("--save_dir", options.save_dir))
    record = writing.record_of(network, about)
    writing.check_replaceable(folder, "pdmodel", record["weights"], options.overwrite)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        temporary = Path(temporary)
        quantise(network, list(ranges.values()), temporary)
        image = writing.noisy_pictures(2, network.options["n_channel"], 97, 130)
        with paddle.no_grad():
            expected = network(paddle.to_tensor(image)).numpy()
        found = open_engine(engine_options(model_dir=str(temporary), precision="int8"))(image)
        decibels = -10 * np.log10(np.mean((found - expected) ** 2) + 1e-30)
        print(f"PSNR of int8 against float: {decibels:.2f} dB")
        if not decibels >= options.least:
            cli.note(f"export failed: less than --least {options.least:g}, nothing was written")
            return 1
        writing.write_record(temporary, record)
        writing.put_in_place(temporary, folder, FILES["model_filename"])
    print(folder / FILES["model_filename"])
    return 0


if __name__ == "__main__":
    cli.run(main)
