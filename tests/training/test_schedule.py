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


def due(plan, steps, seconds_per_step=0.0):
    """After which of the first steps the weights are saved and scored."""
    return [
        step for step in range(1, steps + 1)
        if plan.snapshot_due(step, (step - 1) * seconds_per_step, step * seconds_per_step)
    ]  # fmt: skip


def test_snapshots_fall_at_ends_of_epochs_or_at_each_tenth_of_the_run():
    assert due(schedule(), 35) == [10, 20, 30]
    assert due(schedule(n_snapshot=2), 45) == [20, 40]
    assert due(schedule(max_steps=50), 50) == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    assert due(schedule(max_steps=50, n_snapshot=3), 50) == [30]
    # By the clock: ten minutes, 25 seconds for each step.
    assert due(schedule(max_minutes=10), 12, 25) == [3, 5, 8, 10, 12]


def test_a_run_without_epochs_halves_its_rate_at_each_fifth():
    for plan in (schedule(max_steps=100), schedule(n_epoch=9, max_steps=90)):
        length = plan.total_steps
        rates = [plan.learning_rate(step, 0) for step in range(length + 1)]
        changes = [step for step in range(1, length) if rates[step] != rates[step - 1]]
        assert changes == [length // 5 * fifth for fifth in (1, 2, 3, 4)]
        assert (rates[0], rates[length - 1], rates[length]) == (1.0, 0.5**4, 0.5**4)
    assert schedule(max_steps=100, lr=0.3, gamma=0.1).learning_rate(50, 0) == pytest.approx(0.3 * 0.1**2)
    # Ten epochs are enough for the published milestones, which come an epoch early.
    assert schedule(n_epoch=10).learning_rate(10, 0) == 0.5
    assert schedule(n_epoch=9).learning_rate(17, 0) == 1.0


def test_the_rate_warms_up_step_by_step():
    plan = schedule(warmup_steps=4, max_steps=100)
    assert [plan.learning_rate(step, 0) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_the_time_that_is_left():
    assert schedule(max_steps=1000).remaining(400, 99, 2.0) == "0:20:00"
    assert schedule(max_steps=1000).remaining(1000, 99, 2.0) == "0:00:00"
    # The clock ends it first, and never below zero.
    assert schedule(max_minutes=10).remaining(400, 90, 2.0) == "0:08:30"
    assert schedule(max_minutes=10, max_steps=401).remaining(400, 90, 2.0) == "0:00:02"
    assert schedule(max_minutes=10).remaining(400, 700, 2.0) == "0:00:00"


def test_the_shortest_length_counts():
    assert schedule(n_epoch=3).total_steps == 30
    assert schedule(n_epoch=3, max_steps=29).total_steps == 29
    assert schedule(n_epoch=3, max_steps=31).total_steps == 30
    assert schedule(max_steps=5000).total_steps == 5000  # not the hundred epochs of a run that is given no length
    assert schedule(max_minutes=1).total_steps >= 10**9
    assert [schedule(max_steps=8).progress(step, 1e9) for step in (0, 2, 8, 9)] == [0, 0.25, 1, 1]
    assert schedule(max_steps=8, max_minutes=2).progress(2, 90) == 0.75
    assert schedule(max_steps=8, max_minutes=2).progress(4, 30) == 0.5


def test_the_regulariser_of_epochs_starts_late_and_rises_by_whole_epochs():
    plan = schedule(n_epoch=4, reg_start=0.5)
    assert [plan.ramp(step, 0) for step in (0, 19, 20, 29, 30, 39)] == [0, 0, 0.75, 0.75, 1, 1]


def test_lines_are_counted_within_each_epoch_or_through_short_ones():
    def logged(every):
        return [step for step in range(25) if schedule(log_iters=every).log_due(step)]

    assert logged(4) == [0, 4, 8, 10, 14, 18, 20, 24]
    assert logged(10) == [0, 10, 20]
    assert logged(12) == [0, 12, 24]
    assert logged(1) == list(range(25))
