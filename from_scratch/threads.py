"""Import this before NumPy: the work is shared out to threads of ours, and each of them gets one thread of BLAS.

Products of matrices would use several cores by themselves, but all that lies between them (copies, activations, sums)
would not. A batch is therefore cut into shards of a few images, whose arrays also fit into the caches.
"""

import os
from concurrent.futures import ThreadPoolExecutor

for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(variable, "1")

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
pool = ThreadPoolExecutor(CORES)
