"""Every public name is documented, and every example in the documentation runs and prints what it says."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import blasformer
import numpy as np
import pytest

MODULES = ["blasformer"] + [
    f"blasformer.{module.name}"
    for module in pkgutil.iter_modules(blasformer.__path__)
    if module.name != "__main__" and not module.name.startswith("_core")
]


def public_objects():
    """The functions and classes of blasformer and of its public modules, by the name a user calls them."""
    modules = [name for name in MODULES if "._" not in name and name != "blasformer.cli"]
    found = {}
    for module_name in modules:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module_name
        ]
        for name in names:
            value = getattr(module, name)
            if inspect.isroutine(value) or inspect.isclass(value):
                found[f"{module_name}.{name}"] = value
    return found


OBJECTS = public_objects()


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(module, tmp_path, monkeypatch, minilm_folder):
    monkeypatch.chdir(tmp_path)
    Path("all-MiniLM-L6-v2").symlink_to(minilm_folder)
    finder = doctest.DocTestFinder(exclude_empty=True)
    for test in finder.find(importlib.import_module(module), extraglobs={"np": np}):
        if test.examples:
            assert doctest.DocTestRunner().run(test).failed == 0, test.name


@pytest.mark.parametrize("name", OBJECTS)
def test_a_public_name_is_documented(name):
    text = inspect.getdoc(OBJECTS[name])
    assert text
    assert not text.startswith(f"{name.rpartition('.')[2]}("), "the text that NamedTuple or dataclass makes"


@pytest.mark.parametrize("name", [name for name, value in OBJECTS.items() if inspect.isfunction(value)])
def test_a_public_function_has_an_example_and_says_what_it_raises(name):
    text = inspect.getdoc(OBJECTS[name]) or ""
    assert ">>> " in text
    assert re.search("[Rr]aises", text) or name == "blasformer.get_num_threads"
