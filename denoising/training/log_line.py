"""The published log line of a step: its losses, and how fast the training goes."""

import time

import numpy as np

from denoising.cli import UserError
from denoising.inference import distributed


class Pace:
    """How many seconds a step takes on average since the last log line, and how many of them it waits for images."""

    def __init__(self):
        self.restart()

    def restart(self):
        self.steps, self.start, self.waited = 0, time.perf_counter(), 0.0

    def next(self, stream):
        """The next batch, whose loading counts as waiting."""
        start = time.perf_counter()
        batch = next(stream)
        self.waited += time.perf_counter() - start
        self.steps += 1
        return batch

    def per_step(self):
        return (time.perf_counter() - self.start) / self.steps, self.waited / self.steps


def log_losses(log, plan, training, losses, rate, pace):
    """The published log line of the step that has just been made, and the same as numbers by name.

    Raises:
        UserError: a loss is not finite.
    """
    options, step = plan.options, training.step - 1
    loss, loss1, loss2, Lambda = losses
    loss1, loss2, loss = (distributed.mean(value.item()) for value in (loss1, loss2, loss))
    if not np.isfinite([loss1, loss2, loss]).all():
        where = f"at step {step} (--lr {options.lr})"
        raise UserError(f"the loss is not finite {where}: try a smaller --lr, or --clip_grad 1")
    epoch, iteration = step // plan.steps_per_epoch + 1, step % plan.steps_per_epoch
    cost, reader = pace.per_step()
    ips = options.batchsize * distributed.WORLD_SIZE / cost
    eta = plan.remaining(training.step, training.seconds, cost)
    log.line(
        f"{epoch:04d} {iteration:05d} Loss1={loss1:.6f}, Lambda={Lambda}, Loss2={loss2:.6f}, Loss_Full={loss:.6f}, "
        f"Time={cost:.4f} avg_reader_cost: {reader:.5f} sec, avg_batch_cost: {cost:.5f} sec, "
        f"avg_samples: {options.batchsize}, ips: {ips:.5f} images/s, eta: {eta}"
    )
    log.scalars(training.step, {
        "loss/rec": loss1, "loss/reg": loss2, "loss/full": loss,
        "schedule/lr": rate, "schedule/Lambda": Lambda, "speed/ips": ips,
    })  # fmt: skip
    pace.restart()
