"""The playground's JavaScript draws the masks of GroupMask, bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmml_aug import GroupMask

SCRIPT = Path(__file__).parent.parent / "docs" / "assets" / "playground.js"
PROGRAM = """
const { draw } = require(process.argv[1]);
const asked = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(asked.map(([seed, index, options]) => draw(seed, index, options))));
"""


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, int, dict[str, Any]]:
    rows, columns = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    shares = st.one_of(st.integers(0, 20).map(lambda n: n / 20), st.floats(0, 1))
    ratio = sorted((draw(shares), draw(shares)))
    sides = st.integers(1, min(rows, columns))
    group_size = draw(st.one_of(st.none(), st.just([1, 1]), st.tuples(sides, sides).map(sorted)))
    placement = draw(st.sampled_from(["uniform", "inside"]))
    options = {"rows": rows, "columns": columns, "ratio": ratio, "groupSize": group_size, "placement": placement}
    options["invert"] = draw(st.booleans())
    return str(draw(st.integers(-(2**63), 2**64 - 1))), draw(st.integers(0, 2**40)), options


@settings(max_examples=10)
@given(st.lists(cases(), min_size=30, max_size=30))
def test_the_same_groups_as_python(asked: list[tuple[str, int, dict[str, Any]]]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    done = subprocess.run(
        [node, "-e", PROGRAM, str(SCRIPT)], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    for (seed, index, options), group in zip(asked, json.loads(done.stdout), strict=True):
        ratio, group_size = tuple(options["ratio"]), options["groupSize"] and tuple(options["groupSize"])
        corrupt = GroupMask(
            1, ratio, group_size=group_size, placement=options["placement"], invert=options["invert"], seed=int(seed)
        )
        plan = corrupt.sample((1, 1, options["rows"], options["columns"]), index=torch.tensor([index]))
        assert plan.group.flatten().tolist() == group, (seed, index, options)


def test_it_stays_short() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 250
