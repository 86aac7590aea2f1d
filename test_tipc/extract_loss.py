"""Prints the losses of a training log, one a line; of two logs, says whether they have the same ones.

    python test_tipc/extract_loss.py dynamic.log static.log

The numbers are compared as they are printed, to the last digit. A log without losses, one that is not finite, or one
loss more on a side than on the other is a difference; ends with 1 then.
"""

import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root
from denoising import cli

# epoch, iteration, and everything that is a loss; times differ, of course.
LINE = re.compile(r"^(\d{4} \d{5} Loss1=\S+, .*?Loss_Full=\S+?),", re.MULTILINE)


def get_parser():
    """One log, or two."""
    parser = cli.Parser(__doc__)
    parser.add_argument("log", type=Path, help="of a training")
    parser.add_argument("other", type=Path, nargs="?", help="of another one, which should have the same losses")
    return parser


def main(argv=None):
    """Prints one log's losses or compares those of two."""
    options = get_parser().parse_args(argv)
    logs = [Path(cli.existing_file("LOG", path)) for path in (options.log, options.other) if path]
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
    cli.run(main)
