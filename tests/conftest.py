"""Without a GPU Triton runs in its interpreter, said before anything imports it; and no test depends on the clock."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # OpenMP's threads wait by spinning: two processes' would slow each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Numba's cache looks at a function's own file and not at what it imports: a cache for each state of the source.
_source = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parents[1].glob("gmml_aug/**/*.py"))))
os.environ.setdefault("NUMBA_CACHE_DIR", f"{tempfile.gettempdir()}/gmml-aug-numba-{_source.hexdigest()[:12]}")

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what trains, starts processes or meets large libraries: `pytest -m "not slow"` is the inner loop."""
    for item in items:
        trains = item.path.parent.name == "clients" or item.path.stem.startswith(
            ("test_example", "test_documents", "test_site")
        )
        if trains or "triton" in item.name or "importing" in item.name:  # Triton's interpreter
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file in one process, where they share a trained network: `pytest -n 2`."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_report_header() -> str:
    """Say which backends are tried here."""
    from .backends import DRAWING, WRITING

    return f"backends: {', '.join([*DRAWING, *WRITING])}"


@pytest.fixture(params=["functions", "compiled,functions"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a test by the functions alone, and by the compiled loops where Numba is installed.

    A backend that fails fails the test: it would only warn, and all later tests would compare functions with functions.
    """
    from gmml_aug import backends

    names: str = request.param
    if names != "functions":
        pytest.importorskip("numba")
    monkeypatch.setenv("GMML_AUG_BACKENDS", names)
    monkeypatch.setattr(backends, "_broken", set())
    yield names
    assert not backends._broken
