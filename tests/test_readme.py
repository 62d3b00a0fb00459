"""What the README and the recipes show runs as it is written, in an empty folder."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "examples" / "recipes.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the Python of a page, each piece with the heading above it."""
    found = []
    heading = ""
    for match in re.finditer(r"^#+ ([^\n]+)$|^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        heading = match[1] or heading
        if match[2]:
            found.append((heading, match[2]))
    return found


def libraries(code: str) -> set[str]:
    """Return the libraries that a piece of code imports, beside this one, torch and Python's own."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"gmml_aug", "torch"}


PIECES = blocks(README) + blocks(RECIPES)


@pytest.mark.parametrize(("heading", "code"), PIECES, ids=[heading for heading, _ in PIECES])
def test_python_runs(heading: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in libraries(code):
        pytest.importorskip(library)
    if "interop.kornia" in code:
        pytest.importorskip("kornia", minversion="0.9")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, heading, "exec"), {"__name__": "__main__"})


def test_the_preview_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    for name in ("photo1.jpg", "photo2.jpg"):
        image.new("RGB", (300, 240), "red").save(tmp_path / name)
    (command,) = re.findall(r"^```sh\n(.*?)^```$", RECIPES, flags=re.MULTILINE | re.DOTALL)
    words = shlex.split(command)
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "sheet.png").exists()


def test_every_recipe_has_code_and_the_readme_names_it() -> None:
    titles = re.findall(r"^## (.+)$", RECIPES, flags=re.MULTILINE)
    assert len(titles) >= 10
    for title in titles:
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        assert f"examples/recipes.md#{anchor}" in README, title


def test_every_guarantee_names_tests_that_exist() -> None:
    tests = (ROOT / "tests" / "test_guarantees.py").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+_)\*`", README)
    assert len(named) == 5
    for prefix in named:
        assert f"def {prefix}" in tests
