"""What an installed blasformer is: its files, its version, what importing it does, and its stub."""

import ast
import importlib.metadata
import inspect
import re
import sys
from pathlib import Path

import blasformer
import fresh_python
from blasformer import _core

PACKAGE = Path(blasformer.__file__).parent
REPOSITORY = Path(__file__).parent.parent


def test_importing_loads_no_other_package_than_numpy() -> None:
    program = """
import sys, numpy.random, numpy.typing
before = set(sys.modules)
import blasformer
print(*{name.partition('.')[0] for name in set(sys.modules) - before})"""
    slow = {"argparse", "asyncio", "concurrent", "email", "http", "multiprocessing", "subprocess"}
    loaded = set(fresh_python.run(program).split())
    assert loaded - sys.stdlib_module_names == {"blasformer"}
    assert not loaded & slow


def test_importing_starts_no_thread_and_loads_no_blas() -> None:
    program = """
import os, numpy
def state():
    with open("/proc/self/maps") as maps:
        libraries = {line.split()[-1] for line in maps if "blas" in os.path.basename(line)}
    return len(os.listdir("/proc/self/task")), libraries
before = state()
import blasformer
print(state() == before)"""
    assert fresh_python.run(program) == "True"


def test_one_version_is_stated_everywhere() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert blasformer.__version__ == _core.__version__ == version
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[?([0-9][^\s\]]*)", changelog, re.MULTILINE)[:1] == [version]
    if PACKAGE.parent != REPOSITORY / "python" and list(PACKAGE.parent.glob("blasformer-*.dist-info")):
        assert importlib.metadata.version("blasformer") == version


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "_core.pyi").exists()


def test_a_bundled_library_comes_with_its_licences() -> None:
    folder = Path(_core.__file__).parent / "_lib"
    for library in folder.glob("*.so*"):
        licences = (folder / "LICENSE-openblas.txt").read_text()
        assert library.name.startswith("libscipy_openblas")
        assert all(name in licences for name in ("OpenBLAS", "LAPACK", "GCC runtime library"))


class Signature:
    """A function's parameters and types in one spelling: no module prefixes, `...` for every default."""

    def __init__(self, function: ast.FunctionDef, is_method: bool) -> None:
        self.name = function.name
        arguments = function.args
        if is_method:  # the first parameter is the object itself, under any name
            (arguments.posonlyargs or arguments.args).pop(0)
        arguments.defaults = [ast.Constant(...) for _ in arguments.defaults]
        arguments.kw_defaults = [default and ast.Constant(...) for default in arguments.kw_defaults]
        annotated = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        nodes = [argument.annotation for argument in annotated] + [function.returns]
        prefix = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")
        self.types = [prefix.sub("", ast.unparse(node)) for node in nodes if node is not None]
        for argument in annotated:
            argument.annotation = None
        self.parameters = ast.unparse(arguments)

    def refines(self, documented: "Signature") -> bool:
        """Whether this says the same of the function, or more where the core says `object` or the like."""
        vague = ("object", "Any", "dict", "dtype", "list", "ndarray", "tuple")
        return self.parameters == documented.parameters and all(
            ours == theirs or theirs in vague
            for ours, theirs in zip(self.types, documented.types, strict=True)
        )


def documented_signatures(function: object, is_method: bool) -> list[Signature]:
    """What pybind11 writes into a docstring: one signature, or a numbered one for each overload."""
    lines = re.findall(r"^(?:\d+\. )?\w*(\(.*\) -> .+)$", inspect.getdoc(function) or "", re.MULTILINE)
    program = "\n".join(f"def f{re.sub(r'= <[^>]*>', '= ...', line)}: ..." for line in lines)
    return signatures(ast.parse(program), is_method)


def signatures(owner: ast.Module | ast.ClassDef, is_method: bool) -> list[Signature]:
    functions = [node for node in owner.body if isinstance(node, ast.FunctionDef)]
    return [Signature(function, is_method) for function in functions]


def functions_of_core() -> dict[str, list[Signature]]:
    """By name; methods and properties as Class.name. A class that Python cannot construct has no __init__."""
    functions = {}
    for owner in [_core, *(value for value in vars(_core).values() if inspect.isclass(value))]:
        is_class = inspect.isclass(owner)
        for name, value in vars(owner).items():
            function = value.fget if isinstance(value, property) else value
            if inspect.isroutine(function) and (name == "__init__" or not name.startswith("_")):
                functions[f"{owner.__name__}.{name}"] = documented_signatures(function, is_class)
    return {name: signatures for name, signatures in functions.items() if signatures}


def functions_of_stub() -> dict[str, list[Signature]]:
    functions: dict[str, list[Signature]] = {}
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    for owner in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        owner_name = owner.name if isinstance(owner, ast.ClassDef) else _core.__name__
        for signature in signatures(owner, isinstance(owner, ast.ClassDef)):
            functions.setdefault(f"{owner_name}.{signature.name}", []).append(signature)
    return functions


def test_the_stub_declares_every_function_of_the_core_as_it_is() -> None:
    declared, documented = functions_of_stub(), functions_of_core()
    assert sorted(declared) == sorted(documented)
    for name, signatures in documented.items():
        assert len(declared[name]) == len(signatures), name
        for ours, theirs in zip(declared[name], signatures, strict=True):
            assert ours.refines(theirs), (name, ours.parameters, ours.types, theirs.parameters, theirs.types)
