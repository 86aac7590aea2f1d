"""Trains a small network that also learns from a large one: its output for the same noisy images.

    python test_tipc/train_distill.py --teacher=best_model.pdparams --n_feature=24 --data_dir=images --n_epoch=1

takes the flags of train.py, and --teacher. The loss is that of the method plus the mean squared distance to the
teacher's output.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import paddle

import train_for_tipc
from denoising import cli
from denoising.inference import checkpoint
from denoising.training.methods import build_method
from denoising.training.options import get_parser


class Distillation:
    """A method's loss and the distance to a teacher; in all else it is that method."""

    def __init__(self, method, teacher):
        self.method, self.teacher = method, teacher

    def __getattr__(self, name):
        return getattr(self.method, name)

    def __call__(self, network, noisy, *more, ramp):
        """As of every method, see denoising/training/methods.py."""
        loss, loss1, loss2, Lambda = self.method(network, noisy, *more, ramp=ramp)
        self.teacher.ops = network.ops  # the engine that the run has chosen
        with paddle.no_grad():
            wanted = self.teacher(noisy)
        distance = paddle.mean((network(noisy) - wanted) ** 2)
        return loss + distance, loss1 + distance, loss2, Lambda


def main():
    """Trains with the teacher beside the method."""
    parser = get_parser(__doc__)
    parser.add_argument("--teacher", help="weights of the large network (.pdparams)")
    options, *more = train_for_tipc.read(parser)
    cli.refuse((not options.teacher, "--teacher: the weights of the large network are needed"))
    teacher, _ = checkpoint.load_network(cli.existing_file("--teacher", options.teacher))
    return train_for_tipc.run(options, *more, method=Distillation(build_method(options), teacher))


if __name__ == "__main__":
    cli.run(main)
