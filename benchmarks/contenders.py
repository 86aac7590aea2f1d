"""Contenders of a benchmark: each measured in a process of its own, in turn with the others, round by round."""

import json
import os
import subprocess
import sys

from denoising import cli


def measured(script, title, flags, environment):
    """What a script prints as JSON for `--measure`; None if that fails, as where a framework is not installed."""
    command = [sys.executable, "-W", "ignore", script, "--measure", *map(str, flags)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        cli.note(f"{title}: not measured: {lines[-1] if lines else 'no message'}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def take_turns(titles, rounds, measure):
    """Yields contenders and what `measure` found of them; one that cannot be measured is not tried again.

    Args:
        titles: {contender: how it is called}.
        rounds: how often each is measured.
        measure: takes a contender and returns the result, or None.
    """
    absent = set()
    for i in range(rounds):
        for contender in [contender for contender in titles if contender not in absent]:
            cli.note(f"round {i + 1} of {rounds}: {titles[contender]}")
            result = measure(contender)
            if result is None:
                absent.add(contender)
            else:
                yield contender, result
