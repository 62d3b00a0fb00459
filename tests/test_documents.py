"""The code of the README, the site's pages and the recipes runs as it is written, in a folder of its own."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RECIPES = (ROOT / "examples" / "recipes.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), ROOT / "examples" / "recipes.md"]


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


def some_photographs(folder: Path) -> None:
    """Write a folder for each of two classes, with images of one colour each."""
    image = pytest.importorskip("PIL.Image")
    for number in range(16):
        path = folder / ("cats", "dogs")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (80, 60), (15 * number, 100, 100)).save(path)


PIECES = [(f"{page.stem}: {heading}", code) for page in PAGES for heading, code in blocks(page.read_text("utf-8"))]


@pytest.mark.parametrize(("heading", "code"), PIECES, ids=[heading for heading, _ in PIECES])
def test_python_runs(heading: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in libraries(code):
        try:
            pytest.importorskip(library)
        except RuntimeError as error:  # it refuses a torch of another CUDA
            if library != "torchaudio":
                raise
            pytest.skip(str(error))
    if "interop.kornia" in code:
        pytest.importorskip("kornia", minversion="0.9")
    monkeypatch.chdir(tmp_path)
    if '"photos"' in code:
        some_photographs(tmp_path / "photos")
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


def test_every_recipe_is_a_page_that_the_readme_or_its_list_names() -> None:
    included = "".join(page.read_text("utf-8") for page in sorted((DOCS / "integrations").glob("*.md")))
    titles = re.findall(r"^## (.+)$", RECIPES, flags=re.MULTILINE)
    assert len(titles) >= 10
    for title in titles:
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        assert f'examples/recipes.md#{anchor} "include")' in included, title
    index = (DOCS / "integrations" / "index.md").read_text("utf-8")
    for page in sorted((DOCS / "integrations").glob("*.md")):
        assert page.stem == "index" or f"({page.name})" in index


def test_every_guarantee_names_its_tests_and_each_of_them_is_named() -> None:
    tests = (ROOT / "tests" / "test_guarantees.py").read_text("utf-8")
    guarantees = (DOCS / "guarantees.md").read_text("utf-8")
    named = re.findall(r"tests/test_guarantees\.py#(\w+)\)", guarantees)
    assert named == re.findall(r"^def (test_\w+)\(", tests, flags=re.MULTILINE)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130
