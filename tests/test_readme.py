"""What the README shows runs as it is written."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_every_guarantee_names_tests_that_exist() -> None:
    tests = (Path(__file__).parent / "test_guarantees.py").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+_)\*`", README)
    assert len(named) == 5
    for prefix in named:
        assert f"def {prefix}" in tests
