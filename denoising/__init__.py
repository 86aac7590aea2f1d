"""Denoising, room by room along an image's way: imaging, files, data, engine, inference, training, reports, and on.

>>> from denoising import Denoiser
>>> denoised = Denoiser("best_model.pdparams")(noisy)  # HWC or HW, uint8, uint16 or float32; the same kind back
"""

import warnings

# Paddle's import complains of a missing compiler cache, which nothing here needs.
warnings.filterwarnings("ignore", message="No ccache found")


def __getattr__(name):
    """Loads the Denoiser, and Paddle with it, when it is asked for."""
    if name == "Denoiser":
        from denoising.inference.denoiser import Denoiser

        return Denoiser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
