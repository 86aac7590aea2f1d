"""A trial of a model in a process of its own: some broken or malicious files crash the library that reads them.

Only files without an intact record of their export are tried: what this project has written is known to load.
"""

import multiprocessing
import os

import numpy as np

from denoising import cli
from denoising.cli import UserError

SECONDS = 60  # an export of this project loads within three


def run(runtime_class, *arguments):
    """Opens a model and runs a small image in a process that may crash without harm.

    Args:
        runtime_class: the class of the runtime, which is called with the arguments and trusted=True.
        arguments: the first is the path of the program.

    Raises:
        UserError: as the runtime does; and if the process crashes or does not finish.
    """
    context = multiprocessing.get_context("spawn")  # in a fork, the threads of loaded libraries would be missing
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_try, args=(sender, runtime_class, arguments), daemon=True)
    process.start()
    sender.close()
    name = runtime_class.runtime
    try:
        refusal = receiver.recv() if receiver.poll(SECONDS) else f"{name} does not load it within {SECONDS} seconds"
    except EOFError:
        refusal = f"{name} crashes when it loads this file"
    finally:
        process.kill()
        process.join()
        receiver.close()
    if refusal:
        raise UserError(refusal if refusal.startswith("--") else f"--model_file: {arguments[0]}: {refusal}")


def _try(sender, runtime_class, arguments):
    cli.start_worker()
    for stream in (1, 2):  # libraries print pages when they crash
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    refusal = None
    try:
        runtime = runtime_class(*arguments, trusted=True)
        runtime(np.full((1, runtime.channels, 32, 32), 0.5, np.float32))
    except UserError as error:
        refusal = str(error)
    sender.send(refusal)
