"""Several processes as one: every call does nothing when there is only one.

Started by `python -m paddle.distributed.launch --nproc_per_node 2 train.py ...` (gloo on CPUs, NCCL on GPUs).
"""

import os

import paddle
from paddle import distributed as dist

RANK = int(os.environ.get("PADDLE_TRAINER_ID", "0"))
WORLD_SIZE = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
IS_MAIN = RANK == 0
LOCAL_DEVICE = os.environ.get("FLAGS_selected_gpus", "0")  # which GPU the launcher gave this process


def start():
    """Joins the other processes; to be called once, before the first tensor."""
    if WORLD_SIZE > 1:
        dist.init_parallel_env()


def average_gradients(parameters):
    """Averages gradients over all processes: one message of all of them joined, because each message costs."""
    if WORLD_SIZE == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    joined = paddle.concat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joined)
    joined /= WORLD_SIZE
    sizes = [gradient.size for gradient in gradients]
    for gradient, piece in zip(gradients, paddle.split(joined, sizes), strict=True):
        gradient.copy_(piece.reshape(gradient.shape), True)


def mean(value):
    """The mean of a number over all processes."""
    if WORLD_SIZE == 1:
        return value
    tensor = paddle.to_tensor([value], dtype="float64")
    dist.all_reduce(tensor)
    return tensor.item() / WORLD_SIZE


def broadcast_parameters(network):
    """Gives every process the first one's weights."""
    if WORLD_SIZE > 1:
        for parameter in network.state_dict().values():
            dist.broadcast(parameter, src=0)


def gather(items):
    """Joins the lists of all processes, in the order of ranks."""
    if WORLD_SIZE == 1:
        return list(items)
    lists = []
    dist.all_gather_object(lists, list(items))
    return [item for share in lists for item in share]


def from_main(value):
    """The first process's value, on every process."""
    if WORLD_SIZE == 1:
        return value
    return gather([value])[0]


def agree(seconds, stop):
    """The first process's clock, and whether any process was asked to stop: all must decide alike."""
    if WORLD_SIZE == 1:
        return seconds, stop
    tensor = paddle.to_tensor([seconds if IS_MAIN else 0.0, float(stop or 0)], dtype="float64")
    dist.all_reduce(tensor)
    seconds, signals = tensor.numpy().tolist()
    return seconds, int(signals) or None
