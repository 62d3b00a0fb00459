"""The house: what imports what, what happens where a backend is missing or fails, and several processes and threads."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import gmml_aug
from gmml_aug import GroupMask, backends

PACKAGE = Path(gmml_aug.__file__).parent
# Lowest first: a module imports only what stands before it. The packages' own files stand before their backends.
LAYERS = [
    "grid", "rng", "streams", "shapes", "native", "plan", "backends",
    "filling.operation", "filling.fills", "filling.everywhere", "filling",
    "sampling", "sampling.sequential", "sampling.batched", "sampling.compiled", "sampling.triton_draw",
    "filling.compiled", "filling.triton_fill",
    "describe", "labels", "inputs", "scores", "state", "transform", "preview", "",
    "interop", "interop.dinov2", "interop.kornia", "__main__",
]  # fmt: skip
BACKENDS = ("sequential", "batched", "compiled", "triton_draw", "everywhere", "triton_fill")
MAY_KNOW = {"grid", "rng", "shapes", "native", "plan", "sampling", "filling.operation", "sampling.sequential",
            "sampling.triton_draw"}  # fmt: skip


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str) -> set[str]:
    """Return the modules of the package that one of them imports."""
    found, package = set(), name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [part for part in package[: len(package) - node.level + 1] if part]
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".strip(".")
                found.add(inner if inner in FILES else module)
    return found - {name}


def test_every_module_has_its_layer() -> None:
    assert set(LAYERS) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_imports_run_downwards(name: str) -> None:
    for other in imports(name):
        assert LAYERS.index(other) < LAYERS.index(name), f"{name} imports {other}"


@pytest.mark.parametrize("name", [name for name in FILES if name.split(".")[-1] in BACKENDS])
def test_a_backend_knows_no_fill_and_no_module(name: str) -> None:
    assert imports(name) <= MAY_KNOW


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_long(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= 350


def run(code: str, **environment: str) -> str:
    """Run some lines in a process of their own, which neither hangs nor aborts."""
    given = {name: value for name, value in os.environ.items() if name != "GMML_AUG_BACKENDS"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:gmml_aug", "-c", code],
        env={**given, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_importing_needs_torch_alone() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import gmml_aug
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new & {"numba", "triton", "torchvision", "kornia", "timm", "matplotlib", "PIL", "scipy", "numpy"}))
"""
    assert run(code) == "[]"


@pytest.mark.slow
def test_a_process_may_be_forked_after_the_import() -> None:
    """Importing starts no threads of torch's, which a forked process would wait for without an end."""
    if not hasattr(os, "fork"):
        pytest.skip("this platform cannot fork")
    code = """
import os, signal, torch
import gmml_aug
child = os.fork()
if not child:
    signal.alarm(30)  # ends it where it hangs
    torch.set_num_threads(2)
    torch.rand(10**6).mul(2)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    assert run(code, OMP_NUM_THREADS="2") == "0"


DIGEST = """
import hashlib, torch
from gmml_aug import GroupMask
digest = hashlib.sha256()
for fill in ({"noise": 1, "alien": 1}, "shuffle"):
    for shape in ((3, 32, 32), (6, 3, 32, 32)):
        corrupt = GroupMask(4, fill=fill if len(shape) == 4 else "noise", seed=3)
        for field in (*corrupt.sample(shape), *corrupt(torch.ones(shape))):
            digest.update(field.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_everything_is_the_same_without_numba() -> None:
    pytest.importorskip("numba")
    blocked = "import sys; sys.modules['numba'] = None\n"
    wanted = run(DIGEST, GMML_AUG_BACKENDS="compiled,functions")
    assert run(DIGEST, GMML_AUG_BACKENDS="functions") == wanted
    with_spec = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'numba' else f(n, *a)\n"
    )
    assert run(blocked + with_spec + DIGEST, GMML_AUG_BACKENDS="compiled,functions") == wanted


@pytest.mark.slow
def test_a_cache_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    (tmp_path / "file").write_text("")
    wanted = run(DIGEST, GMML_AUG_BACKENDS="functions")
    folder = str(tmp_path / "file" / "cache")
    assert run(DIGEST, GMML_AUG_BACKENDS="compiled,functions", NUMBA_CACHE_DIR=folder) == wanted


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMML_AUG_BACKENDS", "functions,numba")
    with pytest.raises(ValueError, match="triton, compiled, functions, with commas between; got 'numba'"):
        GroupMask(seed=0).sample((3, 224, 224))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_backend_that_fails_is_left_out_with_one_warning(inplace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from gmml_aug.filling import compiled

    def fail(*arguments: object) -> None:
        raise RuntimeError("no luck")

    images = torch.randn(4, 3, 16, 16)
    monkeypatch.setenv("GMML_AUG_BACKENDS", "functions")
    wanted = GroupMask(4, 0.5, {"noise": 1, "alien": 1}, seed=0)(images)
    monkeypatch.setenv("GMML_AUG_BACKENDS", "compiled,functions")
    monkeypatch.setattr(backends, "_broken", set())
    monkeypatch.setattr(compiled, "write", fail)
    monkeypatch.setattr(importlib.metadata, "version", fail)  # its package may have another name than its module
    corrupt = GroupMask(4, 0.5, {"noise": 1, "alien": 1}, seed=0, inplace=inplace)
    with pytest.warns(UserWarning, match=r"compiled backend.*numba.*no luck.*GMML_AUG_BACKENDS=functions"):
        assert torch.equal(corrupt(images.clone()).images, wanted.images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corrupt(images.clone())


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
def test_a_draw_that_fails_counts_its_samples_once_and_lack_of_memory_is_the_callers(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    from gmml_aug.sampling import compiled

    def fail(*arguments: object) -> None:
        raise error("no luck")

    monkeypatch.setenv("GMML_AUG_BACKENDS", "functions")
    wanted = GroupMask(4, 0.5, seed=0).sample((4, 3, 16, 16))
    monkeypatch.setenv("GMML_AUG_BACKENDS", "compiled,functions")
    monkeypatch.setattr(backends, "_broken", set())
    monkeypatch.setattr(compiled, "draw", fail)
    corrupt = GroupMask(4, 0.5, seed=0)
    if error is RuntimeError:
        with pytest.warns(UserWarning, match="no luck"):
            assert all(map(torch.equal, corrupt.sample((4, 3, 16, 16)), wanted))
        assert corrupt.counter == 4
    else:
        with pytest.raises(error):
            corrupt.sample((4, 3, 16, 16))
        assert not backends._broken


@pytest.mark.slow
def test_compiled_loops_are_loaded_when_a_process_has_worked_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    code = """
import sys, torch
from gmml_aug import GroupMask, backends
corrupt, again = (GroupMask(16, 0.5, seed=0) for _ in range(2))
first = corrupt.sample((8, 3, 224, 224))
assert "numba" not in sys.modules
backends._owed = backends._PRICE
assert all(map(torch.equal, first, again.sample((8, 3, 224, 224))))
print("numba" in sys.modules)
"""
    assert run(code) == "True"


@pytest.mark.slow
def test_threads_forks_and_workers_after_a_compiled_call() -> None:
    """Pools of Numba's own would abort or hang here."""
    pytest.importorskip("numba")
    if not hasattr(os, "fork"):
        pytest.skip("this platform cannot fork")
    code = """
import os, threading, torch
from torch.utils.data import DataLoader
from gmml_aug import GroupMask
from tests import processes

torch.set_num_threads(2)
corrupt, images = GroupMask(16, fill={"noise": 1, "alien": 1}, seed=0), torch.randn(32, 3, 224, 224)
expected = corrupt(images, index=torch.arange(32)).images

def same():
    assert torch.equal(corrupt(images, index=torch.arange(32)).images, expected)

if __name__ == "__main__":
    threads = [threading.Thread(target=lambda: [same() for _ in range(5)]) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    child = os.fork()
    if not child:
        torch.set_num_threads(2)
        out = corrupt(images, index=torch.arange(32)).images
        torch.set_num_threads(1)  # torch's own threads do not outlive a fork: comparing with two would hang
        os._exit(0 if torch.equal(out, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    for start in ("fork", "spawn"):
        data = processes.Masks(GroupMask(1, 0.5, seed=0))
        assert len(torch.cat(list(DataLoader(data, 4, num_workers=2, multiprocessing_context=start)))) == 32
    same()
    print("done")
"""
    script = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n{code}"
    assert run(script, GMML_AUG_BACKENDS="compiled,functions") == "done"
