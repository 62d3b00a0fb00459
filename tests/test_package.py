"""The wheel and the sdist hold what they should, and the wheel works by itself."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import gmml_aug

ROOT = Path(__file__).parent.parent
pytest.importorskip("hatchling")
CODE = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "gmml_aug").rglob("*")
    if path.suffix in (".py", ".md") or path.name == "py.typed"
}
NAME = f"gmml_aug-{gmml_aug.__version__}"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    return folder


def test_the_wheel(dist: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        about = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
        assert set(wheel.namelist()) == CODE | about
        about_it = wheel.read(f"{NAME}.dist-info/METADATA").decode().splitlines()
        assert [line for line in about_it if "Requires-Dist" in line and "extra ==" not in line] == [
            "Requires-Dist: torch>=2.7"
        ]
        wheel.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import gmml_aug.interop.dinov2; print(gmml_aug.__file__)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == tmp_path / "gmml_aug" / "__init__.py"


def test_the_sdist(dist: Path) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as sdist:
        names = {name.removeprefix(f"{NAME}/") for name in sdist.getnames()}
    others = {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert names - {".gitignore"} == CODE | others


def test_the_version_is_the_one_that_the_documents_name() -> None:
    assert f"## [{gmml_aug.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"version: {gmml_aug.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"version {gmml_aug.__version__}," in (ROOT / "README.md").read_text("utf-8")
