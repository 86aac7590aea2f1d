"""Puts faults into the code, one at a time, and tells which of them the tests let pass.

    python tests/mutants.py --count 100 --seed 0
    python tests/mutants.py --only noise.py --count 20 --jobs 2

A fault is a comparison turned, a plus that becomes a minus, a constant off by one, a condition negated, a statement or
an argument dropped. It is put into a copy of the tree; this one stays as it is. What survives is listed at the end,
with its line: either a test is missing, or the line does nothing. Exit code 1 if less than --wanted of 100 are caught.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

ENVIRONMENT = dict(os.environ)  # as it was before Paddle's import
ROOT = Path(__file__).resolve().parent.parent
# Which tests answer for which files; both are patterns. The quickest tests come first, because the first failure ends.
TABLE = {
    "denoising/training/methods.py": "tests/training/test_methods.py tests/training/test_distillation.py "
    "tests/training/test_recorrupted.py",
    "denoising/training/optimizers.py": "tests/training/test_optimizers.py",
    "denoising/training/schedule.py": "tests/training/test_schedule.py",
    "denoising/training/log_line.py": "tests/training/test_log_line.py",
    "denoising/training/state.py denoising/inference/distributed.py": "tests/training/test_state.py",
    "denoising/training/options.py denoising/training/checks.py": "tests/training/test_options.py",
    "train.py": "tests/scripts/test_train_parts.py tests/scripts/test_train.py",
    "dataset.py denoising/data/streams.py": "tests/scripts/test_dataset.py tests/data/test_pairs.py",
    "denoising/data/targets.py": "tests/data/test_pairs.py",
    "denoising/data/validation.py": "tests/data/test_validation.py",
    "denoising/imaging/noise.py": "tests/imaging/test_noise.py",
    "denoising/imaging/metrics.py": "tests/imaging/test_metrics.py",
    "denoising/imaging/pixels.py": "tests/imaging/test_pixels.py",
    "denoising/imaging/mri.py": "tests/imaging/test_mri.py",
    "denoising/inference/denoiser.py": "tests/inference/test_denoiser.py",
    "denoising/inference/evaluation.py": "tests/inference/test_evaluation.py",
    "denoising/inference/checkpoint.py": "tests/inference/test_checkpoint.py",
    "denoising/engine/build.py": "tests/engine/test_build.py",
    "denoising/engine/operators.py": "tests/engine/test_[ce]*.py tests/training/test_optimizers.py",
    "denoising/export/quantization.py": "tests/export/test_scales.py tests/export/test_onnx_file.py",
    "denoising/export/onnx_file.py": "tests/export/test_scales.py tests/export/test_onnx_file.py",
}
TURNED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Pow: ast.Mult,
    ast.Mod: ast.Mult,
}  # fmt: skip


def faulty(node):
    """Copies of an expression or a statement, each with one fault of its own."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in TURNED:
        yield _with(node, ops=[TURNED[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in TURNED:
        yield _with(node, op=TURNED[type(node.op)]())
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield _with(node, value=not node.value if isinstance(node.value, bool) else node.value + 1)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Call) and node.keywords:
        yield from (
            _with(node, keywords=[k for k in node.keywords if k is not left])
            for left in node.keywords
            if left.arg != "strict"
        )
    if isinstance(node, ast.Call) and len(node.args) > 1:
        yield _with(node, args=node.args[:-1])
    stores = isinstance(node, ast.Assign) and not isinstance(node.targets[0], (ast.Name, ast.Tuple))
    calls = isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Yield))
    if stores or calls or isinstance(node, (ast.Raise, ast.AugAssign, ast.Continue, ast.Break)):
        yield ast.Pass()


def _with(node, **changes):
    node = copy.copy(node)
    for name, value in changes.items():
        setattr(node, name, value)
    return node


def places(tree):
    """(parent, field, index or None) of each node of a file that may be faulty; annotations are left alone."""
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            if isinstance(parent, ast.keyword) and parent.arg == "strict":  # only a bug of its own would show
                continue
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, (ast.expr, ast.stmt)):
                    yield parent, field, index


def faults(path):
    """(line, before, after, source of the whole file) of each possible fault of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for parent, field, index in list(places(tree)):
        held = getattr(parent, field)
        node = held if index is None else held[index]
        for fault in faulty(node):
            ast.copy_location(fault, node)
            before = ast.unparse(node)
            _put(parent, field, index, fault)
            yield node.lineno, before, ast.unparse(fault), ast.unparse(ast.fix_missing_locations(tree)) + "\n"
            _put(parent, field, index, node)


def _put(parent, field, index, node):
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def files_of(patterns):
    return sorted({str(path.relative_to(ROOT)) for pattern in patterns.split() for path in ROOT.glob(pattern)})


def sample(count, seed, only):
    """`count` faults, the rows of the table in turn: (tests, path, line, before, after, source)."""
    rng, rows = random.Random(seed), []
    for patterns, tests in TABLE.items():
        paths = [path for path in files_of(patterns) if only in path]
        found = [(tests, path, *fault) for path in paths for fault in faults(path)]
        rng.shuffle(found)
        rows += [found] if found else []
    chosen = []
    while len(chosen) < count and any(rows):
        chosen += [row.pop() for row in rows if row]
    return chosen[:count]


def tree_of_this_process(folder):
    """A copy of what git knows of, and what is new."""
    target = Path(folder, str(os.getpid()))
    if target.exists():
        return target
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    (target / "tmp").mkdir()
    return target


def survives(folder, fault, limit):
    """Whether a fault passes the tests."""
    tests, path, _, _, _, source = fault
    tree = tree_of_this_process(folder)
    (tree / path).write_text(source, encoding="utf-8")
    try:
        return passes(tree, tests, limit)
    finally:
        shutil.copy(ROOT / path, tree / path)


def passes(tree, tests, limit):
    """Whether the tests pass in a tree, within a time; in a fork of this process, which has imported Paddle already."""
    process = multiprocessing.get_context("fork").Process(target=_run_tests, args=(tree, tests))
    process.start()
    process.join(limit)
    # Only what the tests have started; without them, there is no such group any more.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    late = process.exitcode is None
    process.join()
    shutil.rmtree(tree / "tmp", ignore_errors=True)
    (tree / "tmp").mkdir(exist_ok=True)
    return not late and process.exitcode == 0


def _run_tests(tree, tests):
    os.setsid()
    os.chdir(tree)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    home = {"HOME": str(tree), "TMPDIR": str(tree / "tmp"), "XDG_CACHE_HOME": str(tree / ".cache")}
    os.environ.clear()
    os.environ.update({**ENVIRONMENT, **home, "PYTHONDONTWRITEBYTECODE": "1"})
    sys.path[0], sys.dont_write_bytecode, tempfile.tempdir = str(tree), True, None
    found = [path for pattern in tests.split() for path in ([pattern] if "::" in pattern else files_of(pattern))]
    os._exit(pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", *found]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="how many faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose path contains this")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    parser.add_argument("--wanted", type=float, default=90, help="how many of 100 must be caught")
    options = parser.parse_args()
    chosen = sample(options.count, options.seed, options.only)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # no thread that a fork would lose
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("cv2", "paddle", "PIL.Image"):
            importlib.import_module(name)
    survivors, times = [], {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for tests in dict.fromkeys(fault[0] for fault in chosen):
            began = time.monotonic()
            if not passes(tree_of_this_process(folder), tests, 1200):
                sys.exit(f"without a fault, these do not pass: {tests}")
            times[tests] = time.monotonic() - began
        # Processes, not threads: Paddle is used by the thread that has forked.
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
            tried = [pool.submit(survives, folder, fault, 2 * times[fault[0]] + 20) for fault in chosen]
            for (_, path, line, before, after, _), result in zip(chosen, tried, strict=True):
                change = "  ->  ".join(" ".join(text.split())[:60] for text in (before, after))
                where = (ROOT / path).read_text(encoding="utf-8").splitlines()[line - 1].strip()
                description = f"{path}:{line}: {change}  in  {where}"
                print("SURVIVED" if result.result() else "caught  ", description, flush=True)
                survivors += [description] if result.result() else []
    caught = len(chosen) - len(survivors)
    print(f"\n{caught} of {len(chosen)} caught", *sorted(survivors), sep="\n  survived: ")
    sys.exit(100 * caught < options.wanted * len(chosen))


if __name__ == "__main__":
    main()
