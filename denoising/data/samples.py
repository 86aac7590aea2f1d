"""Which of many images are looked at, where some of them tell enough."""

import numpy as np


def evenly(count, most):
    """Up to `most` of the numbers below `count`, in order and evenly spread from the first to the last."""
    return sorted(set(np.linspace(0, count - 1, most).astype(int).tolist()))
