"""The quick report of speed: one table to paste, from whatever is installed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    monkeypatch.setenv("GMML_AUG_BACKENDS", "compiled,functions")
    return importlib.import_module("report")


@pytest.mark.slow
def test_quick_prints_one_table(
    report: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "TURN", 1e-6)
    images = ("clone()", "gmml_aug, alien, in place", "Kornia RandomErasing")
    monkeypatch.setattr(report, "QUICK_ROWS", {"masks": ("gmml_aug, groups",), "transform": images})
    # A peer that is missing is said to be, and ends nothing.
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    monkeypatch.setattr(sys, "argv", ["report.py", "--quick", "--rounds", "2", "--device", "cpu"])
    report.main()
    about, empty, head, line, *table = capsys.readouterr().out.splitlines()
    assert "torch: " in about
    assert empty == ""
    assert head.count("|") == line.count("|") == 5
    assert all(row.count("|") == 5 for row in table)
    assert len(table) == 5
    for row in ("batch 256: gmml_aug, groups", "float32: clone()", "float32: gmml_aug, alien, in place"):
        assert any(row in each for each in table)
    (missing,) = [row for row in table if "Kornia" in row]
    assert "kornia" in missing.split("|")[2]


def test_quick_goes_with_no_part_and_no_folder(report: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", "--quick", "--only", "masks"])
    with pytest.raises(SystemExit, match="2"):
        report.main()
