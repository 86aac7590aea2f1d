"""Noise2Noise Lite behind the interface of EPFL's course project, for arrays and CPU tensors of uint8.

>>> from lite import Model
>>> model = Model()
>>> model.train(noisy1, noisy2, num_epochs=1)  # N x 3 x H x W, 0..255; or model.load_pretrained_model()
>>> denoised = model.predict(noisy)  # any N, H and W; uint8, 0..255
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising.files import pair_files
from denoising.imaging.pixels import from_01, to_01
from denoising.inference.denoiser import Denoiser
from denoising.inference.devices import fastest_precision

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "models" / "lite.pdparams"
PIXELS = 1 << 18  # that go through the network at once, where images are small


class Model:
    """A denoiser that is trained by `train.py --preset lite`, or loaded."""

    def __init__(self):
        self._denoiser = None

    def load_pretrained_model(self, path=WEIGHTS):
        """Takes weights that are there already: those that ship, or a run's best_model.pdparams."""
        self._denoiser = Denoiser(path)

    def train(self, train_input, train_target, num_epochs=1):
        """Learns from two noisy versions of the same images, from the beginning.

        Raises:
            ValueError: these are no images, or there are not two of each.
            CalledProcessError: the training failed, having said why.
        """
        pairs = _images(train_input), _images(train_target)
        if pairs[0].shape != pairs[1].shape:
            raise ValueError(f"the two versions differ in number or size: {pairs[0].shape} and {pairs[1].shape}")
        with tempfile.TemporaryDirectory() as folder:
            pair_files.write(f"{folder}/pairs.npz", pair_files.TRAINING, pairs)
            flags = ["--preset", "lite", "--data_dir", f"{folder}/pairs.npz", "--n_epoch", num_epochs]
            flags += ["--precision", fastest_precision(), "--n_channel", pairs[0].shape[1]]
            flags += ["--val_dirs", "none", "--save_model_path", folder]
            subprocess.run([sys.executable, ROOT / "train.py", *map(str, flags)], check=True, stdout=subprocess.DEVNULL)
            (weights,) = Path(folder).glob("lite/*/best_model.pdparams")
            self.load_pretrained_model(weights)

    def predict(self, test_input):
        """The denoised images, of the input's size and kind: an array, or a tensor of PyTorch's."""
        if self._denoiser is None:
            raise ValueError("there is no network yet: train() or load_pretrained_model() comes first")
        noisy = _images(test_input)
        if noisy.shape[1] != self._denoiser.network.n_channel:
            raise ValueError(f"the network's images do not have {noisy.shape[1]} channels")
        count = PIXELS // (noisy.shape[2] * noisy.shape[3])
        if count < 2:
            # Large ones one by one, in tiles if need be.
            denoised = np.stack([self._denoiser(image.transpose(1, 2, 0)).transpose(2, 0, 1) for image in noisy])
        else:
            parts = (to_01(noisy[first : first + count]) for first in range(0, len(noisy), count))
            denoised = np.concatenate([from_01(self._denoiser.run_batch(part), np.uint8) for part in parts])
        return test_input.new_tensor(denoised) if hasattr(test_input, "new_tensor") else denoised


def _images(array):
    array = np.ascontiguousarray(array)
    if array.dtype != np.uint8 or array.ndim != 4 or array.size == 0:
        raise ValueError(f"images are uint8 of N x C x H x W, not {array.dtype} of {array.shape}")
    return array
