"""Processes in which others take the cores, set variables or came first: right results, and idle afterwards.

Each in an interpreter of its own, which checks an encoder layer and its gradients against their formula,
forks a child that does so too, and measures what it costs to have used the library once nobody does any more.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import fresh_python
import pytest
from blasformer import _core

BEFORE = """
import os, threading, time, warnings
warnings.simplefilter("ignore")  # of other libraries, and Python 3.12's of every fork with threads
import numpy as np

def anything_else():
    '''Work of another library.'''
"""

AFTER = """
import blasformer, reference, tape
from blasformer import nn

layer = nn.TransformerEncoderLayer(64, 4, 256, activation="gelu_tanh", rng=0)
x, d_y = np.random.default_rng(0).standard_normal((2, 3, 129, 64), np.float32)

def formula(arrays, dtype):
    return reference.transformer_encoder_layer(
        arrays, arrays["x"], num_heads=4, activation="gelu_tanh", dtype=dtype)

exact, gradients = tape.run(formula, {"x": x, **layer.state_dict()}, d_y)

def is_right():
    y, saved = layer.forward(x)
    d_x, grads = layer.backward(saved, d_y)
    errors = [reference.error(y, exact)]
    errors += [reference.error(grads[name], gradients[name]) for name in grads]
    return max(errors) < 1e-5

def idle_seconds():
    '''CPU time in the second after a call: the least of several, for a busy machine can lengthen it.'''
    least = 1.0
    for _ in range(8):
        is_right()
        began = time.process_time()
        time.sleep(1)
        least = min(least, time.process_time() - began)
        if least < 0.005:
            break
    return least

def prove():
    anything_else()
    assert all(is_right() for _ in range(3))
    child = os.fork()
    if child == 0:
        os._exit(0 if is_right() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    anything_else()
    assert is_right()
"""


def run(before: str = "", after: str = "", **variables: str) -> str:
    """What is printed by a program of `before`, the import of blasformer and `after`."""
    return fresh_python.run(f"{BEFORE}\n{before}\n{AFTER}\n{after}", **variables)


def assert_right_and_idle(before: str = "", after: str = "", **variables: str) -> None:
    assert float(run(before, f"{after}\nprove()\nprint(idle_seconds())", **variables)) < 0.005


# ----------------------------------------------------------------------------------------------------------
# Cores
# ----------------------------------------------------------------------------------------------------------

ONE_CORE = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"


@pytest.mark.parametrize("threads", ["", "blasformer.set_num_threads(64)"])
def test_one_core_will_do(threads: str) -> None:
    assert_right_and_idle(ONE_CORE, threads)


def test_cores_may_be_taken_away_later() -> None:
    assert_right_and_idle("", f"prove()\n{ONE_CORE}")


def test_many_more_threads_than_cores_may_be_asked_for() -> None:
    assert_right_and_idle("", "blasformer.set_num_threads(64)")


def test_threads_beyond_the_cores_do_not_wait_at_the_expense_of_the_work() -> None:
    program = """
def cost(threads):
    blasformer.set_num_threads(threads)
    seconds = []
    for _ in range(20):
        began = time.process_time()
        for _ in range(5):
            is_right()
        seconds.append(time.process_time() - began)
    return min(seconds)

print(cost(64) / cost(1))"""
    assert float(run("", program)) < 8


@pytest.fixture
def group_of_half_a_core(tmp_path: Path) -> Iterator[Path]:
    """A control group that may use half a core, if this user may make one."""
    for folder, limits in {
        "/sys/fs/cgroup/cpu": {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"},
        "/sys/fs/cgroup/cpu,cpuacct": {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"},
        "/sys/fs/cgroup": {"cpu.max": "50000 100000"},
    }.items():
        group = Path(folder, f"blasformer-{tmp_path.name}-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name, limit in limits.items():
                (group / name).write_text(limit)
        except OSError:
            group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("this user may not make a control group that limits the CPU")


def test_half_a_core_is_one_thread_and_enough(group_of_half_a_core: Path) -> None:
    enter = f"open({str(group_of_half_a_core / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
    assert run(enter, "prove()\nprint(blasformer.get_num_threads())") == "1"
    assert_right_and_idle(enter, "blasformer.set_num_threads(2)")


# ----------------------------------------------------------------------------------------------------------
# Variables
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables",
    [
        {"OMP_NUM_THREADS": "0", "OPENBLAS_NUM_THREADS": "0"},
        {"OMP_NUM_THREADS": "-1", "OPENBLAS_NUM_THREADS": "-1"},
        {"OMP_NUM_THREADS": "64", "OPENBLAS_NUM_THREADS": "64", "BLASFORMER_NUM_THREADS": "64"},
        {"OMP_NUM_THREADS": "3,2,1", "OPENBLAS_NUM_THREADS": "two", "GOTO_NUM_THREADS": "7"},
        {"OMP_NUM_THREADS": "9" * 30, "OPENBLAS_NUM_THREADS": "9" * 30},
        {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_MAIN_FREE": "1", "OMP_PROC_BIND": "true"},
        {"OPENBLAS_CORETYPE": "none such", "OPENBLAS_THREAD_TIMEOUT": "4"},
        {
            "OPENBLAS_CORETYPE": "",
            "OPENBLAS_VERBOSE": "2",
            "OMP_DYNAMIC": "true",
            "OMP_WAIT_POLICY": "active",
        },
    ],
    ids=str,
)
def test_variables_of_other_libraries_harm_nothing(variables: dict[str, str]) -> None:
    assert run("", "prove()\nprint('right')", **variables) == "right"


@pytest.mark.parametrize("name", _core.built_isas())
def test_an_instruction_set_works_or_is_refused_with_one_clear_error(name: str) -> None:
    if name in (*_core.detected_isas(), "amx_reference"):
        assert run("", "prove()\nprint('right')", BLASFORMER_ISA=name) == "right"
        return
    names = ", ".join(_core.detected_isas())
    error = f"must be an instruction set of this CPU ({names}), got {name}"
    program = "try:\n    {}\nexcept ValueError as error:\n    print(error)"
    assert run("", program.format("is_right()"), BLASFORMER_ISA=name) == f"BLASFORMER_ISA {error}"
    assert run("", program.format(f"blasformer.use_isa({name!r})") + "\nprove()") == f"isa {error}"


# ----------------------------------------------------------------------------------------------------------
# Other libraries
# ----------------------------------------------------------------------------------------------------------

BUSY = """
def keep_busy():
    while not done.is_set():
        work()

done = threading.Event()
others = [threading.Thread(target=keep_busy) for _ in range(3)]
for other in others:
    other.start()
assert all(is_right() for _ in range(5))
done.set()
for other in others:
    other.join()
prove()  # which forks: not while they compute, or OpenBLAS itself hangs
time.sleep(1)  # until the other library's threads are idle too
print(idle_seconds())
"""


@pytest.mark.parametrize("library", ["numpy", "scipy"])
def test_an_openblas_that_is_busy_in_other_threads_is_none_of_our_business(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    work = {
        "numpy": "def work(): a @ a",
        "scipy": "from scipy.linalg.blas import dgemm\ndef work(): dgemm(1.0, a, a)",
    }[library]
    matrix = "a = np.random.default_rng(0).standard_normal((300, 300))"
    assert float(run(f"{matrix}\n{work}", BUSY)) < 0.005


@pytest.mark.parametrize("first", [True, False], ids=["first", "after"])
def test_pytorch_may_be_imported_before_and_after(first: bool) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    pytorch = """
import torch

def anything_else():
    a = torch.ones(300, 300, requires_grad=True)
    torch.nn.functional.scaled_dot_product_attention(a[None], a[None], a[None]).sum().backward()
    a @ a
"""
    proof = "prove()\nprove()\ntime.sleep(1)\nprint(idle_seconds())"
    printed = run(pytorch, proof) if first else run("", f"prove()\n{pytorch}\n{proof}")
    assert float(printed) < 0.005
