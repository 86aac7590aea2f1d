"""Prints the losses of a training log, one a line; of two logs, says whether they have the same ones.

    python test_tipc/extract_loss.py dynamic.log static.log

The numbers are compared as they are printed, to the last digit. A log without losses, one that is not finite, or one
loss more on a side than on the other is a difference; ends with 1 then.
"""

import argparse
import math
import re
import sys
from pathlib import Path

# epoch, iteration, and everything that is a loss; times differ, of course.
LINE = re.compile(r"^(\d{4} \d{5} Loss1=\S+, .*?Loss_Full=\S+?),", re.MULTILINE)


def get_parser():
    """One log, or two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path)
    return parser


def main(argv=None):
    """Prints one log's losses or compares those of two."""
    logs = get_parser().parse_args(argv).logs
    lines = [LINE.findall(path.read_text(errors="replace")) for path in logs]
    for path, found in zip(logs, lines, strict=True):
        values = [float(value) for line in found for value in re.findall(r"Loss\w+=([^,\s]+)", line)]
        if not values or not all(map(math.isfinite, values)):
            print(f"{path}: {'a loss is not finite' if values else 'holds no losses'}")
            return 1
    if len(logs) == 1:
        print("\n".join(lines[0]))
        return 0
    if lines[0] != lines[1]:
        pairs = [pair for pair in zip(*lines, strict=False) if pair[0] != pair[1]]
        print(f"{len(lines[0])} and {len(lines[1])} losses, {len(pairs)} of which differ", *pairs[:3], sep="\n")
        return 1
    print(f"{len(lines[0])} losses are the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
