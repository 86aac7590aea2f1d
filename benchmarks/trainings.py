"""Trainings that benchmarks compare: each is made once, and found again by the next call."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def trained(save_dir, name, *flags):
    """The run folder of a training by train.py with these flags, made unless a finished one is there."""
    folder, wanted = Path(save_dir) / name, " ".join(map(str, flags))
    for finished in folder.glob("*/finished"):
        if finished.read_text(encoding="utf-8") == wanted:
            return finished.parent
    print(f"training {name}", file=sys.stderr)
    command = [sys.executable, "-W", "ignore", ROOT / "train.py", *flags]
    command += ["--save_model_path", save_dir, "--log_name", name]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{name}: {(result.stderr.strip() or 'the training ended with an error').splitlines()[-1]}")
    run = max(folder.glob("*/metrics.csv")).parent
    (run / "finished").write_text(wanted, encoding="utf-8")
    return run
