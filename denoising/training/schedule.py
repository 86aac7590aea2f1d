"""How long a training is, and which learning rate and regulariser weight each step has: pure functions of progress."""

import datetime
import math


class Schedule:
    """The plan of a run: its length from --n_epoch, --max_steps and --max_minutes, whichever ends first.

    With --max_minutes the rate follows the clock, so that the training ends annealed when the time is up.
    """

    def __init__(self, options, steps_per_epoch):
        self.options, self.steps_per_epoch = options, steps_per_epoch
        # A hundred epochs are the published length; whoever gives another measure means that one.
        unlimited = options.n_epoch is None and (options.max_steps or options.max_minutes)
        self.n_epoch = 10**9 if unlimited else options.n_epoch or 100
        self._only_minutes = unlimited and not options.max_steps
        self.total_steps = min(self.n_epoch * steps_per_epoch, options.max_steps or 10**18)
        self.by_epoch = self.total_steps == self.n_epoch * steps_per_epoch and not options.max_minutes

    def __str__(self):
        """The length in words: whichever ends first."""
        steps = [] if self._only_minutes else [f"{self.total_steps} steps"]
        minutes = [f"{self.options.max_minutes:g} minutes"] if self.options.max_minutes else []
        return " or ".join([*steps, *minutes])

    def progress(self, step, seconds):
        """0 at the start, 1 at the end."""
        done = step / self.total_steps
        if self.options.max_minutes:
            done = max(done, seconds / 60 / self.options.max_minutes)
        return min(done, 1.0)

    def snapshot_due(self, step, before, seconds):
        """Whether the weights are to be saved and scored now.

        Every --n_snapshot epochs; unless that is given, a run that is not one of epochs does so at each tenth.
        `before` are the seconds at the end of the step before.
        """
        if self.by_epoch or self.options.n_snapshot:
            return step % ((self.options.n_snapshot or 1) * self.steps_per_epoch) == 0
        return int(self.progress(step, seconds) * 10) > int(self.progress(step - 1, before) * 10)

    def log_due(self, step):
        """Whether a step is logged: counted within each epoch, as published, and through epochs that are too short."""
        every = self.options.log_iters
        return (step % self.steps_per_epoch if self.steps_per_epoch >= every else step) % every == 0

    def ramp(self, step, seconds):
        """How far Lambda has risen, 0..1.

        By whole epochs to the end, as published; where the run is not one of epochs smoothly, and to its full value
        after the share --reg_full of the run.
        """
        if self.progress(step, seconds) < self.options.reg_start:
            return 0.0
        if self.by_epoch:
            return (step // self.steps_per_epoch + 1) / self.n_epoch
        return min(1.0, self.progress(step + 1, seconds) / self.options.reg_full)

    def learning_rate(self, step, seconds):
        """The rate of a step: halved (--gamma) at 20, 40, 60 and 80 %, or a cosine after a warm-up."""
        options, progress = self.options, self.progress(step, seconds)
        warm_up = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
        if options.lr_schedule == "cosine":
            return options.lr * warm_up * 0.5 * (1 + math.cos(math.pi * progress))
        if self.by_epoch and self.n_epoch >= 10:
            # The published milestones count finished epochs; below ten epochs they would fall before the start.
            epochs = step // self.steps_per_epoch
            milestones = [int(share * self.n_epoch / 100) - 1 for share in (20, 40, 60, 80)]
            halvings = sum(epochs >= milestone for milestone in milestones)
        else:
            halvings = min(int(progress * 5), 4)
        return options.lr * warm_up * options.gamma**halvings

    def remaining(self, step, seconds, cost):
        """The time that is left, as h:mm:ss."""
        left = (self.total_steps - step) * cost
        if self.options.max_minutes:
            left = min(left, self.options.max_minutes * 60 - seconds)
        return str(datetime.timedelta(seconds=max(round(left), 0)))
