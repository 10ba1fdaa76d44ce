"""Threads, precision, instruction sets, and what calls do to the process they run in."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blasformer
import numpy as np
import pytest
from blasformer import _core
from blasformer._precision import checked_precision

PACKAGE = Path(blasformer.__file__).parent
CORES = _core.available_cores()


def run_python(program: str, *, time_limit: float = 60, **variables: str) -> str:
    """What a program prints in a fresh interpreter, which must end well and in time."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import blasformer\n" + program],
        env=inherited | variables,
        capture_output=True,
        text=True,
        timeout=time_limit,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(autouse=True)
def process_settings_are_restored() -> Iterator[None]:
    threads = blasformer.get_num_threads()
    yield
    blasformer.set_num_threads(threads)


# Thread settings


def test_set_num_threads_holds_for_every_python_thread() -> None:
    blasformer.set_num_threads(3)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(blasformer.get_num_threads()))
    thread.start()
    thread.join()
    assert [blasformer.get_num_threads(), *seen] == [3, 3]


def test_num_threads_holds_for_its_python_thread_and_its_block() -> None:
    blasformer.set_num_threads(2)
    seen = []
    with blasformer.num_threads(5):
        thread = threading.Thread(target=lambda: seen.append(blasformer.get_num_threads()))
        thread.start()
        thread.join()
        with blasformer.num_threads(1):
            assert blasformer.get_num_threads() == 1
        assert blasformer.get_num_threads() == 5
    assert [blasformer.get_num_threads(), *seen] == [2, 2]


def test_num_threads_ends_with_an_exception_too() -> None:
    blasformer.set_num_threads(2)
    with pytest.raises(KeyError), blasformer.num_threads(1):
        raise KeyError
    assert blasformer.get_num_threads() == 2


@pytest.mark.parametrize("setting", [blasformer.set_num_threads, blasformer.num_threads])
def test_a_number_of_threads_is_a_positive_int(setting: Callable[[Any], object]) -> None:
    for wrong in (0, -1, 257):
        with pytest.raises(ValueError, match=f"the number of threads must be from 1 to 256, got {wrong}"):
            with_context(setting, wrong)
    for wrong in (1.0, "2", None, True):
        with pytest.raises(TypeError, match=f"n must be an int, got {re.escape(repr(wrong))}"):
            with_context(setting, wrong)
    with_context(setting, np.int64(2))


def with_context(setting: Callable[[Any], Any], value: object) -> None:
    context = setting(value)
    if context is not None:
        with context:
            pass


def test_as_many_threads_work_as_were_asked_for() -> None:
    for count in (1, 2, 3):
        with blasformer.num_threads(count):
            assert set(_core.sleep_in_tasks(200, 0.002)) == set(range(count))


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, CORES),
        ({"BLASFORMER_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,8"}, 1),
        ({"BLASFORMER_NUM_THREADS": str(CORES), "OMP_NUM_THREADS": "1"}, CORES),
        ({"BLASFORMER_NUM_THREADS": "10000"}, CORES),
        ({"BLASFORMER_NUM_THREADS": "0"}, CORES),
        ({"BLASFORMER_NUM_THREADS": "-3"}, CORES),
        ({"BLASFORMER_NUM_THREADS": "many", "OMP_NUM_THREADS": "1"}, 1),
        ({"BLASFORMER_NUM_THREADS": "", "OMP_NUM_THREADS": "1 2"}, CORES),
    ],
    ids=str,
)
def test_environment_variables_set_the_default_within_the_cores(
    variables: dict[str, str], threads: int
) -> None:
    assert run_python("print(blasformer.get_num_threads())", **variables) == str(threads)


def test_the_default_respects_the_cpu_affinity() -> None:
    program = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(blasformer.get_num_threads())"""
    assert run_python(program) == "1"


def test_more_threads_than_cores_are_used_when_a_call_asks_for_them() -> None:
    program = f"""
blasformer.set_num_threads({CORES + 2})
print(blasformer.get_num_threads(), len(set(blasformer._core.sleep_in_tasks(200, 0.002))))"""
    assert run_python(program) == f"{CORES + 2} {CORES + 2}"


# threadpoolctl


@pytest.mark.parametrize("first", ["import threadpoolctl", "pass"], ids=["before", "after"])
def test_limits_of_threadpoolctl_reach_the_pool_whenever_it_was_imported(first: str) -> None:
    program = """
import threadpoolctl
blasformer.set_num_threads(3)
with threadpoolctl.threadpool_limits(1):
    print(blasformer.get_num_threads())
with threadpoolctl.threadpool_limits(2, "blas"), blasformer.num_threads(4):
    print(blasformer.get_num_threads())
    with threadpoolctl.threadpool_limits(1):
        print(blasformer.get_num_threads())
    print(blasformer.get_num_threads())
print(blasformer.get_num_threads())
ours = [library for library in threadpoolctl.threadpool_info() if library["internal_api"] == "blasformer"]
print(len(ours), ours[0]["num_threads"], ours[0]["version"] == blasformer.__version__)"""
    program = f"import sys\n{first}\nimport blasformer\n{program}"
    command = [sys.executable, "-W", "error", "-c", program]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert printed == ["1", "4", "1", "4", "3", "1", "3", "True"]


def test_threadpoolctl_is_imported_only_by_those_who_want_it() -> None:
    assert run_python("import sys; print('threadpoolctl' in sys.modules)") == "False"


# Precision


def test_precision_holds_for_its_block_and_yields_to_an_argument() -> None:
    assert checked_precision(None) == "highest"
    with blasformer.precision("ieee"):
        with blasformer.precision("medium"):
            assert checked_precision(None) == "medium"
            assert checked_precision("high") == "high"
        assert checked_precision(None) == "ieee"
    assert checked_precision(None) == "highest"


def test_precision_belongs_to_its_thread_and_its_asyncio_task() -> None:
    seen = []

    async def one(mode: Any) -> None:
        with blasformer.precision(mode):
            await asyncio.sleep(0.01)
            seen.append(checked_precision(None))

    async def both() -> None:
        await asyncio.gather(one("high"), one("medium"))

    with blasformer.precision("ieee"):
        thread = threading.Thread(target=lambda: seen.append(checked_precision(None)))
        thread.start()
        thread.join()
        asyncio.run(both())
    assert sorted(seen) == ["high", "highest", "medium"]


@pytest.mark.parametrize("wrong", ["fast", "", 1, b"high"])
def test_an_unknown_precision_is_refused_at_once(wrong: Any) -> None:
    text = f'precision must be "highest", "high", "medium" or "ieee", got {wrong!r}'
    with pytest.raises(ValueError, match=re.escape(text)):
        blasformer.precision(wrong)


# Instruction sets


def in_use() -> str:
    return blasformer.show_config(mode="dicts")["instruction sets"]["in use"]


def test_use_isa_takes_effect_at_once_and_its_block_puts_back(isa: str) -> None:
    with blasformer.use_isa("baseline"):
        assert in_use() == "baseline"
        blasformer.use_isa(isa)
        assert in_use() == isa
    assert in_use() == isa


def test_an_unknown_instruction_set_is_refused() -> None:
    before = in_use()
    with pytest.raises(ValueError, match="isa must be one of baseline, avx2, avx512, got sse9"):
        blasformer.use_isa("sse9")
    assert in_use() == before


def test_the_newest_instruction_set_is_in_use_unless_the_variable_names_one() -> None:
    program = "print(blasformer.show_config(mode='dicts')['instruction sets']['in use'])"
    newest = _core.detected_isas()[-1]
    assert run_python(program, BLASFORMER_ISA="") == newest
    for name in _core.detected_isas():
        assert run_python(program, BLASFORMER_ISA=name) == name


def test_a_wrong_variable_is_an_error_of_the_first_call_and_not_of_the_import() -> None:
    program = """
import numpy as np
try:
    blasformer.scaled_dot_product_attention(*np.ones((3, 2, 5, 4)))
except ValueError as error:
    print(error)
print(blasformer.show_config(mode="dicts")["instruction sets"]["in use"])"""
    names = ", ".join(_core.detected_isas())
    error = f"BLASFORMER_ISA must be an instruction set of this CPU ({names}), got mmx"
    assert run_python(program, BLASFORMER_ISA="mmx") == f"{error}\nunknown ({error})"


# What this copy is


def test_show_config_prints_what_it_returns(capsys: pytest.CaptureFixture[str]) -> None:
    config = blasformer.show_config(mode="dicts")
    assert blasformer.show_config() is None
    printed = capsys.readouterr().out
    assert config["version"] == blasformer.__version__
    assert config["blas"]["version"].startswith("OpenBLAS ")
    assert config["threads"]["in use"] == blasformer.get_num_threads()
    assert set(config["instruction sets"]["detected"]) <= set(config["instruction sets"]["built"])
    for topic, facts in config.items():
        for value in facts.values() if isinstance(facts, dict) else [facts]:
            assert (", ".join(value) if isinstance(value, list) else str(value)) in printed
        assert topic in printed


def test_show_config_knows_two_modes() -> None:
    wrong: Any = "yaml"
    with pytest.raises(ValueError, match='mode must be "stdout" or "dicts", got \'yaml\''):
        blasformer.show_config(mode=wrong)


def test_loading_openblas_leaves_neither_threads_nor_variables_behind() -> None:
    program = """
import ctypes, os
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
threads = len(os.listdir("/proc/self/task"))
print(blasformer.show_config(mode="dicts")["blas"]["version"].partition(" ")[0])
print(len(os.listdir("/proc/self/task")) - threads, getenv(b"OPENBLAS_NUM_THREADS"))"""
    assert run_python(program).split() == ["OpenBLAS", "0", "None"]
    assert run_python(program, OPENBLAS_NUM_THREADS="7").split() == ["OpenBLAS", "0", "b'7'"]


def test_an_openblas_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "blasformer")
    library = tmp_path / "blasformer" / "_lib" / "libscipy_openblas.so"
    library.parent.mkdir(exist_ok=True)
    library.unlink(missing_ok=True)
    library.write_text("not a library")
    program = 'print(blasformer.show_config(mode="dicts")["blas"]["version"])'
    printed = run_python(program, PYTHONPATH=str(tmp_path))
    assert printed.startswith(f"unknown (OpenBLAS cannot be loaded: {library}: ")


# The process


def attend(length: int = 129) -> np.ndarray:
    query = np.random.default_rng(0).standard_normal((3, length, 33), np.float32)
    return blasformer.scaled_dot_product_attention(query, query[:, ::-1], query, causal=True)


def test_eight_python_threads_compute_what_one_does() -> None:
    expected = attend()
    results: list[np.ndarray] = []

    def compute() -> None:
        for _ in range(10):
            results.append(attend())

    threads = [threading.Thread(target=compute) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert all(np.array_equal(result, expected) for result in results)


def test_a_call_leaves_subnormal_numbers_and_their_results_alone() -> None:
    attend()
    assert 2.0**-1074 > 0
    assert np.float32(2.0**-149) * np.float32(1) > 0


def test_ctrl_c_ends_a_long_call_and_the_next_one_works() -> None:
    program = """
import os, signal, threading, time
for count in (1, 3):
    blasformer.set_num_threads(count)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    try:
        blasformer._core.sleep_in_tasks(20000, 0.002)
    except KeyboardInterrupt:
        print(time.monotonic() - start < 5, len(blasformer._core.sleep_in_tasks(10, 0.002)))"""
    assert run_python(program).split() == ["True", "10", "True", "10"]


def test_a_signal_handler_that_does_not_raise_lets_the_call_finish() -> None:
    seen = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: seen.append(len(attend())))
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert len(_core.sleep_in_tasks(200, 0.002)) == 200
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert seen == [3]


def test_a_forked_child_computes_what_its_parent_does() -> None:
    program = """
import os, threading, numpy as np
blasformer.set_num_threads(3)
inputs = np.linspace(-1, 1, 3 * 4 * 200 * 32).reshape(3, 4, 200, 32)
def attend():
    return blasformer.scaled_dot_product_attention(*inputs)
expected = attend()
stop = threading.Event()
def compute():
    while not stop.is_set():
        attend()
others = [threading.Thread(target=compute) for _ in range(2)]
for other in others:
    other.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(attend(), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for other in others:
    other.join()
print(np.array_equal(attend(), expected))"""
    assert run_python(program) == "True"


def test_a_process_that_may_not_create_threads_computes_with_one() -> None:
    program = """
import os, resource
if os.getuid() == 0:  # whom the limit does not bind
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
blasformer.set_num_threads(4)
threads = len(os.listdir("/proc/self/task"))
print(set(blasformer._core.sleep_in_tasks(10, 0.002)), len(os.listdir("/proc/self/task")) - threads)"""
    assert run_python(program) == "{0} 0"


def test_the_workers_are_idle_soon_after_a_call() -> None:
    program = """
import time
blasformer.set_num_threads(3)
def idle():
    blasformer._core.sleep_in_tasks(12, 0.001)
    start = time.process_time()
    time.sleep(0.2)
    return time.process_time() - start
print(min(idle() for _ in range(5)))  # a busy machine can make one of them look long"""
    assert float(run_python(program)) < 0.005


@pytest.mark.parametrize("milliseconds", [1, 5, 13, 29])
def test_an_exit_while_daemon_threads_compute_neither_crashes_nor_hangs(milliseconds: int) -> None:
    program = f"""
import threading, time, numpy as np
x = np.ones((2, 4, 300, 64), np.float32)
def compute():
    while True:
        blasformer.scaled_dot_product_attention(x, x, x)
for _ in range(3):
    threading.Thread(target=compute, daemon=True).start()
time.sleep({milliseconds} / 1000)"""
    start = time.monotonic()
    run_python(program)
    assert time.monotonic() - start < 20
