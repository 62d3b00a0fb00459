"""The report of ``python -m gmml_aug info`` on this machine."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

import gmml_aug
from gmml_aug import backends
from gmml_aug.__main__ import main


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    main(["info"])
    return capsys.readouterr().out.splitlines()


def test_versions_backends_and_a_timing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_broken", set())
    monkeypatch.delenv("GMML_AUG_BACKENDS", raising=False)
    lines = said(capsys)
    assert lines[0].split() == ["gmml_aug", gmml_aug.__version__]
    assert any(line.split() == ["torch", torch.__version__.split("+")[0]] for line in lines)
    compiled = "works" if importlib.util.find_spec("numba") else "numba is not installed"
    assert f"{'backend':<13} compiled on cpu: {compiled}" in lines
    assert f"{'backend':<13} functions on cpu: works" in lines
    assert lines[-1].endswith("ms")
    assert "GMML_AUG_BACKENDS" not in os.environ


def test_a_backend_that_fails_is_named_with_its_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    from gmml_aug.sampling import compiled

    def fail(*arguments: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(backends, "_broken", set())
    monkeypatch.setattr(compiled, "draw", fail)
    (line,) = [line for line in said(capsys) if "compiled on cpu" in line]
    assert "no luck" in line


def test_a_backend_with_other_bits_is_called_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    from gmml_aug.filling import compiled

    monkeypatch.setattr(backends, "_broken", set())
    monkeypatch.setattr(compiled, "write", lambda images, out, *others: out.zero_())
    (line,) = [line for line in said(capsys) if "compiled on cpu" in line]
    assert "WRONG" in line
