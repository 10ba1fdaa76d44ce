"""The command `blasformer`: what it prints and writes, its exit status, and its one line for each mistake."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import blasformer as bf
import fresh_python
import numpy as np
import pytest
from blasformer import _compare, cli

COMMAND = [sys.executable, "-W", "error", "-m", "blasformer"]
RESULT_KEYS = {
    "group": str,
    "name": str,
    "dtype": str,
    "ok": bool,
    "error": float,
    "numpy_error": float,
    "allowed_error": float,
    "seconds": float,
    "numpy_seconds": float,
    "speed": float,
}


def blasformer(*arguments, cwd, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=fresh_python.environment(),
        capture_output=True,
        text=True,
        timeout=fresh_python.TIME_LIMIT,
        **options,
    )


@pytest.fixture
def arrays(tmp_path):
    """A folder with files of arrays, and of what is none."""
    rng = np.random.default_rng(0)
    for name, heads, length in [("q", 6, 13), ("k", 3, 17), ("v", 3, 17)]:
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((2, heads, length, 8)).astype(np.float32))
    np.save(tmp_path / "plain.npy", rng.standard_normal((13, 8)))
    np.save(tmp_path / "half.npy", rng.standard_normal((2, 13, 8)).astype(np.float16))
    np.save(tmp_path / "nan.npy", np.full((2, 3, 17, 8), np.nan, np.float32))
    np.save(tmp_path / "mask.npy", rng.random((13, 17)) < 0.5)
    np.save(tmp_path / "bias.npy", rng.standard_normal((6, 13, 17)).astype(np.float32))
    np.save(tmp_path / "integers.npy", np.ones((13, 17), int))
    np.save(tmp_path / "long.npy", np.zeros((40, 2000, 1), np.float32))
    np.save(tmp_path / "nothing.npy", np.zeros((2, 3, 0, 8), np.float32))
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=1, b=2)
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("one line\n")
    return tmp_path


@pytest.fixture
def few_cases(monkeypatch):
    """The table with one line for each group that computes little."""
    cases = {"attention": ["2 heads, 8 tokens"], "functions": ["sinusoidal_positions, 1500 x 512"]}
    few = {group: {name: _compare.CASES[group][name] for name in names} for group, names in cases.items()}
    monkeypatch.setattr(_compare, "CASES", few)


# Comparing


def test_own_arrays_are_compared_from_any_folder(arrays):
    done = blasformer("compare", "q.npy", "k.npy", "v.npy", cwd=arrays)
    assert done.returncode == 0
    assert done.stderr == ""
    head, columns, group, attention, gradients, _, right, faster = done.stdout.splitlines()
    assert head.startswith(f"blasformer {bf.__version__} (")
    assert columns.split() == ["error", "NumPy's", "time", "NumPy's", "speed"]
    assert group == "q.npy (2, 6, 13, 8), k.npy (2, 3, 17, 8), v.npy (2, 3, 17, 8), float32"
    assert attention.split()[0] == "attention"
    assert gradients.split()[:3] == ["and", "its", "gradients"]
    assert attention.endswith("  ok")
    assert gradients.endswith("  ok")
    assert right.startswith("2 of 2 right")
    assert " of 2 faster than NumPy" in faster
    assert len({line.index("  ok") for line in (attention, gradients)}) == 1


def test_json_is_one_document_of_a_stated_form(arrays):
    done = blasformer("compare", "--json", "q.npy", "k.npy", "v.npy", cwd=arrays)
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["ok"] is True
    assert report["blasformer"] == bf.__version__
    assert report["numpy"] == np.__version__
    assert report["threads"] >= 1
    assert report["instruction_set"] in ("baseline", "avx2", "avx512")
    assert report["seconds"] > 0
    assert [result["name"] for result in report["results"]] == ["attention", "and its gradients"]
    for result in report["results"]:
        assert {key: type(value) for key, value in result.items()} == RESULT_KEYS
        assert 0 < result["error"] <= result["allowed_error"]
        assert result["dtype"] == "float32"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {}),
        (["--causal", "--query-offset", "4"], {"causal": True, "query_offset": 4}),
        (["--window", "3", "0", "--query-offset", "-2"], {"window": [3, 0], "query_offset": -2}),
        (["--key-lengths", "17,5"], {"key_lengths": [17, 5]}),
        (["--scale", "0.5"], {"scale": 0.5}),
        (["--mask", "mask.npy"], {"mask": "mask.npy"}),
        (["--bias", "bias.npy"], {"bias": "bias.npy"}),
    ],
)
def test_options_reach_attention_and_the_formula(options, expected, arrays, monkeypatch, capsys):
    calls = []
    attention = bf.scaled_dot_product_attention

    def spy(*inputs, **arguments):
        calls.append(arguments)
        return attention(*inputs, **arguments)

    monkeypatch.setattr(bf, "scaled_dot_product_attention", spy)
    monkeypatch.chdir(arrays)
    assert cli.main(["compare", "q.npy", "k.npy", "v.npy", *options]) == 0
    assert "2 of 2 right" in capsys.readouterr().out
    for name in cli.OWN_ARGUMENTS:
        given, wanted = calls[-1][name], expected.get(name)
        if isinstance(wanted, str):
            np.testing.assert_array_equal(given, np.load(wanted))
        else:
            assert given == wanted or (name == "causal" and not given and wanted is None)


@pytest.mark.parametrize("file", ["plain.npy", "half.npy"])
def test_arrays_without_a_batch_and_of_other_dtypes_are_compared(file, arrays, monkeypatch, capsys):
    monkeypatch.chdir(arrays)
    assert cli.main(["compare", "--json", file, file, file]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["dtype"] for result in results] == (["float32"] if file == "half.npy" else ["float64"] * 2)


def test_without_a_command_everything_is_compared(few_cases, capsys):
    assert cli.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in ("attention", "functions")] == ["attention", "functions"]
    assert lines[-2].startswith("2 of 2 right")


def test_a_wrong_result_is_shown_and_makes_the_exit_status_1(few_cases, monkeypatch, capsys):
    attention = bf.scaled_dot_product_attention
    monkeypatch.setattr(
        bf, "scaled_dot_product_attention", lambda *args, **kws: attention(*args, **kws) * 1.001
    )
    assert cli.main(["compare"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("  ")][1:] == ["OFF", "ok"]
    assert lines[-2].startswith("1 of 2 right")


def test_an_error_that_is_not_finite_is_null_in_json(few_cases, monkeypatch, capsys):
    monkeypatch.setattr(bf, "scaled_dot_product_attention", lambda q, k, v: q * np.float32(np.nan))
    assert cli.main(["compare", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["results"][0]["error"] is None
    assert report["results"][0]["ok"] is False


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 us"),
        (9.994e-6, "9.99 us"),
        (1e-5, "10.0 us"),
        (1.234e-4, "123 us"),
        (0.0123, "12.3 ms"),
        (4, "4.00 s "),
    ],
)
def test_durations_have_three_digits(seconds, text):
    assert cli._duration(seconds) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["q.npy", "k.npy"], "takes three arrays, QUERY KEY VALUE, or none, got 2"),
        (["q.npy", "k.npy", "no.npy"], "[Errno 2] No such file or directory: 'no.npy'"),
        (["q.npy", "k.npy", "nan.npy"], "nan.npy must be finite"),
        (["q.npy", "k.npy", "several.npz"], "several.npz must hold one array"),
        (["q.npy", "k.npy", "notes.txt"], "notes.txt must be an array of numbers"),
        (["q.npy", "k.npy", "objects.npy"], "objects.npy must be an array of numbers"),
        (["q.npy", "k.npy", "empty.npy"], "empty.npy must be an array of numbers"),
        (["nothing.npy"] * 3, "nothing.npy must have elements to compare, got the shape (2, 3, 0, 8)"),
        (["q.npy", "k.npy", "plain.npy"], "value must have as many dimensions as query"),
        (["integers.npy"] * 3, "query must be"),
        (["long.npy"] * 3, "the scores of these arrays take 1.3 GB in float64 NumPy"),
        (
            ["q.npy", "k.npy", "v.npy", "--causal"],
            "causal=True is ambiguous for query length 13 and key length 17",
        ),
        (["q.npy", "k.npy", "v.npy", "--mask", "integers.npy"], "mask must be a NumPy array of bool"),
        (["q.npy", "k.npy", "v.npy", "--mask", "no.npy"], "No such file or directory: 'no.npy'"),
        (["q.npy", "k.npy", "v.npy", "--scale", "nan"], "scale must be a finite number, got nan"),
        (
            ["q.npy", "k.npy", "v.npy", "--key-lengths", "1,x"],
            "must be integers with commas between them, got '1,x'",
        ),
        (["q.npy", "k.npy", "v.npy", "--key-lengths", "1,2,3"], "key_lengths must"),
        (["q.npy", "k.npy", "v.npy", "--window", "-1", "0", "--query-offset", "0"], "window must"),
        (["--mask", "mask.npy"], "--mask needs arrays of your own"),
        (["--causal"], "--causal needs arrays of your own"),
        (["--query-offset", "0"], "--query-offset needs arrays of your own"),
        (["--faster"], "unrecognized arguments: --faster"),
    ],
)
def test_a_mistake_costs_one_line_and_the_exit_status_2(arguments, message, arrays, monkeypatch, capsys):
    monkeypatch.chdir(arrays)
    try:
        status = cli.main(["compare", *arguments])
    except SystemExit as stop:
        status = stop.code
    output = capsys.readouterr()
    assert status == 2
    assert output.out == ""
    assert output.err.startswith("blasformer")
    assert "error: " in output.err
    assert message in output.err
    assert output.err.count("\n") == 1


def test_mistakes_reach_the_shell(arrays):
    done = blasformer("compare", "q.npy", "k.npy", "no.npy", cwd=arrays)
    assert done.returncode == 2
    assert done.stderr == "blasformer compare: error: [Errno 2] No such file or directory: 'no.npy'\n"
    done = blasformer("compaer", cwd=arrays)
    assert done.returncode == 2
    assert "invalid choice: 'compaer'" in done.stderr
    assert done.stderr.count("\n") == 1


# Watching, interrupting and cutting off


def test_progress_is_shown_on_a_terminal_only(few_cases, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main(["compare"]) == 0
    progress = capsys.readouterr().err
    assert "\r1 of 2: attention: 2 heads, 8 tokens\033[K" in progress
    assert progress.endswith("\r\033[K")
    assert progress.count("\n") == 0


@contextmanager
def started(*arguments, cwd):
    """The running command; it must end by itself."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=fresh_python.environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
            process.wait(timeout=fresh_python.TIME_LIMIT)
        finally:
            process.kill()


def test_a_reader_may_stop_reading(tmp_path):
    with started("compare", cwd=tmp_path) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_an_interrupt_ends_it_without_a_traceback(tmp_path):
    with started("compare", cwd=tmp_path) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "\n"
    assert process.returncode == 130


# Help, version, info


def test_help_tells_what_each_command_does(tmp_path):
    done = blasformer("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("compare", "info", "embed", "Exit status"))
    for command in ("compare", "info", "embed"):
        done = blasformer(command, "--help", cwd=tmp_path)
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: blasformer {command}")
        assert done.stderr == ""


def test_the_help_of_compare_lists_every_option_for_own_arrays(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    usage, _, rest = capsys.readouterr().out.partition("\n\n")
    for name in cli.OWN_ARGUMENTS:
        option = f"--{name.replace('_', '-')}"
        assert option in usage
        assert option in rest


def test_version_is_that_of_the_package(tmp_path):
    assert blasformer("--version", cwd=tmp_path).stdout == f"blasformer {bf.__version__}\n"


def test_info_shows_the_configuration(tmp_path):
    done = blasformer("info", cwd=tmp_path)
    assert done.returncode == 0
    assert f"version: {bf.__version__}" in done.stdout
    assert "OpenBLAS" in done.stdout


def test_the_installed_command_is_this_one():
    command = shutil.which("blasformer", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("blasformer runs from its source folder, nothing installed the command")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    assert done.stdout == f"blasformer {bf.__version__}\n"


# Embedding


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "lines.txt").write_text("A cat sits on the mat.\n\nDie Katze schläft.", encoding="utf-8")
    return tmp_path


def test_embed_saves_a_row_for_each_line(lines, minilm_folder):
    done = blasformer("embed", minilm_folder, "lines.txt", cwd=lines)
    assert done.returncode == 0
    assert done.stdout == "lines.npy: 3 lines, 384 numbers each, float32\n"
    encoder = bf.models.SentenceEncoder.from_pretrained(minilm_folder)
    expected = encoder.encode(["A cat sits on the mat.", "", "Die Katze schläft."])
    np.testing.assert_array_equal(np.load(lines / "lines.npy"), expected)


def test_embed_writes_where_it_is_told(lines, minilm_folder, capsys):
    output = lines / "vectors"
    assert (
        cli.main(
            ["embed", str(minilm_folder), str(lines / "lines.txt"), "-o", str(output), "--batch-size", "1"]
        )
        == 0
    )
    assert capsys.readouterr().out == f"{output}: 3 lines, 384 numbers each, float32\n"
    assert np.load(output).shape == (3, 384)
    assert sorted(path.name for path in lines.iterdir()) == ["lines.txt", "vectors"]


@pytest.mark.parametrize(
    ("folder", "file", "options", "message"),
    [
        ("nowhere", "lines.txt", [], "nowhere"),
        (".", "lines.txt", [], "modules.json"),
        (None, "nothing.txt", [], "No such file or directory: 'nothing.txt'"),
        (None, "empty.txt", [], "empty.txt has no lines"),
        (None, "latin.txt", [], "latin.txt must be UTF-8 text"),
        (None, "lines.txt", ["-o", "no/out.npy"], "no must be an existing folder"),
        (None, "lines.txt", ["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    ],
)
def test_embed_says_what_it_cannot_use(
    folder, file, options, message, lines, minilm_folder, monkeypatch, capsys
):
    monkeypatch.chdir(lines)
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes("Schläft".encode("latin-1"))
    before = sorted(lines.iterdir())
    assert cli.main(["embed", folder or str(minilm_folder), file, *options]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("blasformer embed: error: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert sorted(lines.iterdir()) == before
