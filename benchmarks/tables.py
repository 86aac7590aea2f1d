"""Rows of measured values and of their ratios, as tables in Markdown.

>>> print(table([Row("published", [2.0, 2.2], "s"), Row("ours", [1.0, 1.1], "s", "speed", [2.0, 2.2], inverse=True)]))
"""

import statistics
from dataclasses import dataclass


@dataclass
class Row:
    """One line of a table: measured values, and how many times those of something else they are."""

    what: str
    values: list
    unit: str
    against: str = ""
    others: list | None = None  # measured in the same rounds
    inverse: bool = False  # for speeds, of which more is better, the values are seconds all the same
    percent: bool = False

    def cells(self):
        """Median and range, then the ratio of each round with its median and range."""
        ratio, spread = "", ""
        if self.others:
            ratios = [a / b for a, b in zip(self.values, self.others, strict=True)]
            if self.inverse:
                ratios = [1 / r for r in ratios]
            elif self.percent:
                ratios = [100 * r for r in ratios]
            sign = " %" if self.percent else ""
            ratio, spread = f"**{_figure(statistics.median(ratios))}{sign}**", _spread(ratios)
        values, unit = self.values, self.unit
        if unit in ("s", "CPU s") and statistics.median(values) < 0.5:
            values, unit = [1000 * value for value in values], unit.replace("s", "ms")
        return self.what, f"{_figure(statistics.median(values))} {unit}", _spread(values), ratio, spread, self.against


def _figure(value):
    """Three digits that count."""
    if value == 0:
        return "0"
    digits = max(0, 3 - len(str(int(abs(value)))) if abs(value) >= 1 else 2 if abs(value) >= 0.1 else 4)
    return f"{value:.{digits}f}"


def _spread(values):
    return f"{_figure(min(values))} .. {_figure(max(values))}" if len(values) > 1 else ""


def table(rows):
    """Rows as Markdown."""
    head = ("", "median", "range", "ratio", "range", "to")
    lines = [head, ("---",) * len(head), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
