from argparse import Namespace

import paddle
import pytest

from denoising.cli import UserError
from denoising.inference import distributed
from denoising.training import log_line
from denoising.training.log_line import Pace, log_losses
from denoising.training.options import get_parser, parse_options
from denoising.training.schedule import Schedule


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless `clock.now` is moved."""
    clock = Namespace(now=100.0)
    monkeypatch.setattr(log_line.time, "perf_counter", lambda: clock.now)
    return clock


def test_the_pace_is_the_mean_since_the_last_line(clock):
    def stream():
        for number in range(9):
            clock.now += 0.5  # to load a batch
            yield number

    batches, pace = stream(), Pace()
    for number in range(4):
        assert pace.next(batches) == number
        clock.now += 1.5
    assert pace.per_step() == (2.0, 0.5)
    pace.restart()
    pace.next(batches)
    assert pace.per_step() == (0.5, 0.5)


def logged_losses(clock, losses, monkeypatch, world_size=1):
    lines, numbers = [], []
    log = Namespace(line=lines.append, scalars=lambda *what: numbers.append(what))
    options, _ = parse_options(get_parser(), ["--data_dir", ".", "--max_steps", "30", "--batchsize", "3"])
    plan, training, pace = Schedule(options, 4), Namespace(step=10, seconds=1.0), Pace()
    clock.now += 3.0
    pace.steps, pace.waited = 2, 1.0
    monkeypatch.setattr(distributed, "WORLD_SIZE", world_size)
    monkeypatch.setattr(distributed, "mean", lambda value: value + 0.125)
    tensors = [paddle.to_tensor(loss) for loss in losses]
    log_losses(log, plan, training, (*tensors, 1.5), 2e-4, pace)
    assert (pace.steps, pace.start, pace.waited) == (0, clock.now, 0)
    return lines, numbers


def test_the_published_line_of_a_step(clock, monkeypatch):
    lines, numbers = logged_losses(clock, (0.5, 0.25, 0.75), monkeypatch)
    assert lines == [
        "0003 00001 Loss1=0.375000, Lambda=1.5, Loss2=0.875000, Loss_Full=0.625000, Time=1.5000 "
        "avg_reader_cost: 0.50000 sec, avg_batch_cost: 1.50000 sec, avg_samples: 3, ips: 2.00000 images/s, eta: 0:00:30"
    ]
    assert numbers == [(10, {
        "loss/rec": 0.375, "loss/reg": 0.875, "loss/full": 0.625,
        "schedule/lr": 2e-4, "schedule/Lambda": 1.5, "speed/ips": 2.0,
    })]  # fmt: skip
    assert "ips: 4.00000 images/s" in logged_losses(clock, (0.5, 0.25, 0.75), monkeypatch, world_size=2)[0][0]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error(clock, monkeypatch, place, wrong):
    losses = [0.5, 0.25, 0.75]
    losses[place] = wrong
    with pytest.raises(UserError, match=r"^the loss is not finite at step 9 \(--lr 0.0003\): try a smaller --lr"):
        logged_losses(clock, losses, monkeypatch)
