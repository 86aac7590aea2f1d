"""NumPy's `.npy` format, read as plain numbers: what could unpickle objects is refused before it is touched."""

import math
import warnings

import numpy as np

MAGIC = b"\x93NUMPY"
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def header(file):
    """Reads a header and leaves the file where the numbers start.

    Returns:
        The shape, whether the first axis varies fastest (Fortran's order), and the dtype.

    Raises:
        Exception: of nearly any kind, as NumPy's parser of hostile text does.
    """
    version = np.lib.format.read_magic(file)
    if version not in READERS:
        raise ValueError(f"an array of version {version}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Headers written by Python 2 are read all the same.
        shape, fortran, dtype = READERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never loaded")
    return shape, fortran, dtype


def read(file, size):
    """Reads a whole file of `size` bytes into an array that cannot be written to.

    Raises:
        Exception: of nearly any kind, as NumPy's parser of hostile text does.
    """
    shape, fortran, dtype = header(file)
    count = math.prod(shape)
    if count < 0 or count * dtype.itemsize != size - file.tell():
        raise ValueError(f"shape {shape} does not fit the size of the file")
    numbers = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    return numbers.reshape(shape, order="F" if fortran else "C")
