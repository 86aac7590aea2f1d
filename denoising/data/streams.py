"""The random numbers of a training: a generator for each purpose, image and epoch.

All of them follow from the seed, so that a batch is a function of its number alone: a killed run resumes to the bit,
and two processes see exactly what one with twice the batch would see.
"""

import numpy as np

ORDER, CROP, NOISE, PICKS, TARGET, MORE = range(6)  # one stream of random numbers per purpose


def generator(seed, purpose, *place):
    """The random generator of one purpose at one place in the training."""
    return np.random.default_rng([seed, purpose, *place])


def streams(seed, *place):
    """The generators of one place: a function that makes, anew at each call, that of a purpose."""
    return lambda purpose: generator(seed, purpose, *place)
