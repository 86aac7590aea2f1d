"""A forked run is what a new interpreter would have run."""

import signal
import subprocess
import time

import pytest

import forks

SHOWS = """
import os, sys
print(sys.argv, os.getcwd(), os.environ.get("COLOUR"), os.environ["OMP_NUM_THREADS"], sys.path[0] == "", __name__)
print(sys.stdin.read() == "", file=sys.stderr)
"""
ENDS = {
    "pass": 0, "raise SystemExit": 0, "import sys; sys.exit(7)": 7, "raise SystemExit('why')": 1, "1 / 0": 1,
    "import os; os._exit(9)": 9, "raise KeyboardInterrupt": -signal.SIGINT,
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": -signal.SIGKILL,
    "import atexit; atexit.register(print, 'last'); print('first')": 0,
    "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()": 0,
}  # fmt: skip


@pytest.mark.parametrize("code", ENDS)
def test_it_ends_as_a_new_interpreter(code):
    forked, fresh = (forks.run("-c", code, fresh=fresh) for fresh in (False, True))
    assert (forked.returncode, forked.stdout, forked.stderr) == (ENDS[code], fresh.stdout, fresh.stderr)
    assert fresh.returncode == ENDS[code]


def test_it_sees_what_a_new_interpreter_sees(tmp_path):
    forked, fresh = (
        forks.run("-c", code, "a", "ü \udcff", cwd=tmp_path, fresh=fresh, COLOUR="red")
        for code, fresh in ((SHOWS, False), ("import paddle\n" + SHOWS, True))
    )
    assert forked.stdout == fresh.stdout
    assert (forked.stderr, "red" in forked.stdout) == ("True\n", True)


def test_a_script_runs_under_its_own_name():
    for fresh in (False, True):
        result = forks.run("predict.py", "--no_such_flag", fresh=fresh)
        assert result.returncode == 2
        assert result.stderr.startswith("predict.py: error: ")


def test_a_run_can_be_stopped_and_others_go_on():
    sleeper = forks.start("-c", "import time; print('here', flush=True); time.sleep(60)")
    assert sleeper.stdout.readline() == "here\n"
    assert sleeper.poll() is None
    assert forks.run("-c", "print(1)").stdout == "1\n"
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.communicate(timeout=0.1)
    sleeper.kill()
    assert sleeper.communicate(timeout=20) == ("", "")
    assert sleeper.returncode == -signal.SIGKILL


def test_what_hangs_is_killed():
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        forks.run("-c", "import time; time.sleep(60)", timeout=0.5)
    assert time.monotonic() - began < 20


def test_variables_that_are_read_on_import_get_an_interpreter():
    with forks.start("-c", "") as process:
        assert isinstance(process, forks.Process)
    for name in ("OMP_NUM_THREADS", "PYTHONPATH", "PADDLE_TRAINER_ID"):
        with forks.start("-c", "", **{name: "1"}) as process:
            assert isinstance(process, subprocess.Popen)
            process.communicate()
