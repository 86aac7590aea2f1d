"""What each choice in a training recipe is worth: short trainings that differ in one thing, scored on clean images.

    python benchmarks/recipes.py --data_dir images/ --val_dirs validation/ --save_dir recipes/     # an hour
    python benchmarks/recipes.py ... --only adam muon --steps 200                                  # a look

Prints a table in Markdown. A recipe that already lies in --save_dir is not trained again. Steps are counted, not
minutes, so that a busy machine changes no result; the seconds of a step are the fastest that were logged.
"""

import csv
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.inference import devices
from trainings import trained

BASE = (
    "--noisetype gauss25 --batchsize 8 --patchsize 128 --lr 1e-3 --lr_schedule cosine --warmup_steps 100 "
    "--reg_start 0.5 --ema 0.999 --workers 1 --val_repeats 1 --log_iters 25"
)
MUON = "--augment --optimizer muon"
# Name, what it shows, the flags that differ, steps in units of the base's: all see about as many pixels.
RECIPES = [
    ("adam", "Adam, 8 patches of 128, --lr 1e-3", "--augment", 1),
    ("adam-lr5e-4", "half the rate", "--augment --lr 5e-4", 1),
    ("adam-lr2e-3", "twice the rate", "--augment --lr 2e-3", 1),
    ("adam-step", "the published steps of the rate, from 3e-4", "--augment --lr 3e-4 --lr_schedule step", 1),
    ("muon", "Muon, 8 patches of 128, --lr 1e-3", MUON, 1),
    ("muon-lr5e-4", "half the rate", f"{MUON} --lr 5e-4", 1),
    ("muon-lr2e-3", "twice the rate", f"{MUON} --lr 2e-3", 1),
    ("muon-192", "4 patches of 192", f"{MUON} --batchsize 4 --patchsize 192", 0.89),
    # A step takes some three times as long with its two full images: about the same minutes.
    ("recorrupted", "Recorrupted-to-Recorrupted, 2 patches of 192",
     f"{MUON} --batchsize 2 --patchsize 192 --method recorrupted2recorrupted", 0.4),
    ("muon-256", "2 patches of 256", f"{MUON} --batchsize 2 --patchsize 256", 1),
    ("muon-batch4", "4 patches of 128, twice the steps", f"{MUON} --batchsize 4", 2),
    ("muon-reg0", "regulariser from the start", f"{MUON} --reg_start 0", 1),
    ("muon-reg75", "regulariser for the last quarter", f"{MUON} --reg_start 0.75", 1),
    ("muon-noreg", "no regulariser", f"{MUON} --Lambda2 0", 1),
    ("muon-ratio4", "Lambda to 4", f"{MUON} --increase_ratio 4", 1),
    ("muon-ema0", "no averaged weights", f"{MUON} --ema 0", 1),
    ("muon-upright", "no flips and rotations", "--optimizer muon", 1),
    ("muon-frozen", "frozen noise", f"{MUON} --noise_protocol frozen", 1),
    ("muon-fp32", "float32", f"{MUON} --precision fp32", 1),
]  # fmt: skip


def get_parser():
    parser = cli.Parser(__doc__)
    parser.add_argument("--data_dir", required=True, help="training images")
    parser.add_argument("--val_dirs", required=True, help="clean validation sets, as train.py takes them")
    parser.add_argument("--save_dir", required=True, help="where the runs are kept")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the base recipe")
    parser.add_argument("--only", nargs="+", choices=[name for name, *_ in RECIPES], help="train these recipes alone")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="precision of all trainings (default: what is fastest)"
    )
    return parser


def row_of(run_folder, meaning, batch):
    with open(run_folder / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    psnr, ips, Lambdas = (
        [float(row["value"]) for row in rows if row["name"].startswith(name)]
        for name in ("psnr/", "speed/ips", "schedule/Lambda")
    )
    speeds = {False: [], True: []}  # without the regulariser, and with it
    for speed, Lambda in zip(ips, Lambdas, strict=True):
        speeds[Lambda > 0].append(speed)
    seconds = " / ".join(f"{batch / max(found):.3f}" for found in speeds.values() if found)
    return f"| {meaning} | {rows[-1]['step']} | {seconds} | {psnr[len(psnr) // 2 - 1]:.2f} | **{psnr[-1]:.2f}** |"


def main(argv=None):
    options = get_parser().parse_args(argv)
    options.precision = options.precision or devices.fastest_precision()
    print("| recipe | steps | s a step, then with the regulariser | PSNR at half time | PSNR |\n|---|---|---|---|---|")
    for name, meaning, flags, share in RECIPES:
        if options.only and name not in options.only:
            continue
        recipe = f"{BASE} --precision {options.precision} --max_steps {round(options.steps * share)} {flags}".split()
        recipe += ["--data_dir", options.data_dir, "--val_dirs", options.val_dirs]
        batch = int(re.search(r".*--batchsize (\d+)", f"{BASE} {flags}")[1])
        print(row_of(trained(options.save_dir, name, *recipe), meaning, batch), flush=True)


if __name__ == "__main__":
    cli.run(main)
