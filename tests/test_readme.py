"""What README.md says is so: its code runs, its links lead somewhere, its folders and commands exist.

And the notebooks show what ran.
"""

import inspect
import json
import re
from pathlib import Path

import blasformer
import pytest
from blasformer import cli

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


def test_the_code_runs_from_top_to_bottom(tmp_path, monkeypatch, minilm_folder):
    monkeypatch.chdir(tmp_path)
    Path("all-MiniLM-L6-v2").symlink_to(minilm_folder)
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["output"].shape == (1, 8, 1024, 64)
    assert namespace["weights"].shape == (1, 1, 1, 1024)
    assert namespace["gradients"].key.shape == (1, 8, 1024, 64)
    assert namespace["vectors"].shape == (2, 384)


def test_every_link_into_the_repository_leads_to_a_file():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_every_link_within_a_page_leads_to_a_heading():
    for page in (README, (REPOSITORY / "CONTRIBUTING.md").read_text()):
        headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors


def test_what_pytorch_calls_otherwise_is_called_so_here():
    """The table's right side: arguments that exist."""
    (table,) = re.findall(r"^\| in PyTorch .*?\n\n", README, re.MULTILINE | re.DOTALL)
    named = {name for row in table.split("\n") for name in re.findall(r"`(\w+)", row.rpartition(" | ")[2])}
    attention = set(inspect.signature(blasformer.scaled_dot_product_attention).parameters)
    layer = set(inspect.signature(blasformer.nn.TransformerEncoderLayer.__call__).parameters)
    transformer = set(inspect.signature(blasformer.nn.Transformer.__call__).parameters)
    assert {"mask", "bias", "causal"} <= named & attention
    assert {"mask", "causal", "key_lengths", "return_weights"} <= named & layer
    assert {"source_mask", "target_mask"} <= named & transformer


def test_every_folder_of_the_source_tree_exists():
    (tree,) = (text for text in blocks("text") if "cpp/core/" in text)
    folders = [line.split()[0] for line in tree.splitlines()]
    assert len(folders) >= 8
    assert [folder for folder in folders if not (REPOSITORY / folder).is_dir()] == []


def test_the_test_command_is_the_one_that_is_checked():
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert "pip install '.[test]' && pytest" in commands
    assert "pip install '.[test]' && pytest" in (REPOSITORY / ".ci" / "run").read_text().splitlines()


def test_every_command_it_names_exists(capsys):
    named = set(re.findall(r"blasformer (compare|info|embed|[a-z]+ --help)", README))
    assert named == {"compare", "info", "embed"}
    for command in named:
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0


@pytest.mark.parametrize(
    "notebook", sorted((REPOSITORY / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_a_notebook_is_committed_as_it_ran_from_top_to_bottom(notebook):
    text = notebook.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert not re.search(r"/(home|root|tmp|usr|Users)/", text)
    assert len(text) < 300_000
