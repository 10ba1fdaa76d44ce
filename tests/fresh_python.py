"""Programs in an interpreter of their own, for what concerns a whole process."""

import os
import signal
import subprocess
import sys
import textwrap

TIME_LIMIT = 300  # seconds: who takes so long, on whatever machine, hangs


def environment(**variables: str) -> dict[str, str]:
    """This process's environment and import path, these variables, and no numbers of threads but theirs."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    path = os.pathsep.join(filter(None, sys.path))
    return {**inherited, "PYTHONPATH": path, **variables}


def run(program: str, **variables: str) -> str:
    """What the program prints. It must end by itself, in time, with status 0; warnings are errors."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and the children that it forked
        printed, errors = process.communicate()
    assert process.returncode == 0, f"status {process.returncode}\n{printed}\n{errors}"
    return printed.strip()
