"""Each row by itself, under pytest-benchmark: ``pytest benchmarks/``. report.py measures them side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import rows
import torch

pytest.importorskip("pytest_benchmark")

os.environ.setdefault("GMML_AUG_BACKENDS", "triton,compiled,functions")  # the steady state, as report.py measures it
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{row.case}-{row.name}") for row in rows.every(DEVICE) if row.group != "busy"]
)
def test_row(benchmark: Any, row: rows.Row) -> None:
    benchmark.group = f"{row.group}: {row.case}"
    torch.set_num_threads(row.threads or torch.get_num_threads())
    try:
        call = row.build()
    except (ImportError, FileNotFoundError) as reason:
        pytest.skip(str(reason))

    def synchronised() -> object:
        result = call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return result

    if isinstance(call, rows.Training):
        benchmark.pedantic(synchronised, setup=call.restart, rounds=3)
        return
    result = benchmark(synchronised)
    if row.group == "masks":
        assert result.shape[-2:] == (14, 14)
        assert result.dtype == torch.bool
