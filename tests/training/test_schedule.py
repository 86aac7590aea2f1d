from types import SimpleNamespace

import pytest

from denoising.training.schedule import Schedule


def schedule(**options):
    defaults = {
        "n_epoch": None, "max_steps": None, "n_snapshot": None, "max_minutes": None,
        "lr": 1.0, "gamma": 0.5, "lr_schedule": "step",
        "warmup_steps": 0, "reg_start": 0.0, "reg_full": 1.0,
    }  # fmt: skip
    return Schedule(SimpleNamespace(**{**defaults, **options}), steps_per_epoch=10)


def test_the_published_schedule():
    plan = schedule()
    rates = [plan.learning_rate(epoch * 10, 0) for epoch in range(100)]
    assert [epoch for epoch in range(1, 100) if rates[epoch] != rates[epoch - 1]] == [19, 39, 59, 79]
    assert rates[-1] == 0.5**4
    assert [plan.ramp(epoch * 10 + 9, 0) for epoch in (0, 49, 99)] == [0.01, 0.5, 1.0]


def test_cosine_with_warm_up_ends_at_zero_by_steps_and_by_the_clock():
    plan = schedule(lr_schedule="cosine", warmup_steps=100)
    assert plan.learning_rate(0, 0) == pytest.approx(0.01)
    assert plan.learning_rate(500, 0) == pytest.approx(0.5)
    assert plan.learning_rate(999, 0) < 1e-5
    plan = schedule(lr_schedule="cosine", max_minutes=10)
    assert plan.learning_rate(1, 300) == pytest.approx(0.5)
    assert plan.progress(1, 600) == 1
    assert plan.ramp(1, 300) == pytest.approx(0.5)


def test_the_regulariser_can_start_late():
    plan = schedule(max_steps=100, reg_start=0.5)
    assert plan.ramp(49, 0) == 0
    assert plan.ramp(50, 0) == pytest.approx(0.51)


def test_the_regulariser_can_be_full_before_the_end():
    plan = schedule(max_steps=100, reg_full=0.25)
    assert [plan.ramp(step, 0) for step in (0, 11, 24, 25, 99)] == pytest.approx([0.04, 0.48, 1, 1, 1])
    plan = schedule(max_minutes=10, reg_full=0.25)
    assert [plan.ramp(1, seconds) for seconds in (75, 150, 600)] == pytest.approx([0.5, 1, 1])
    # A run of epochs rises to its end, as published.
    assert schedule(reg_full=0.25).ramp(499, 0) == 0.5


def test_the_length_in_words():
    assert str(schedule()) == "1000 steps"
    assert str(schedule(n_epoch=3)) == "30 steps"
    assert str(schedule(max_steps=7)) == "7 steps"
    assert str(schedule(max_minutes=20)) == "20 minutes"
    assert str(schedule(max_minutes=0.5, max_steps=7)) == "7 steps or 0.5 minutes"
    assert str(schedule(max_minutes=90, n_epoch=2)) == "20 steps or 90 minutes"
