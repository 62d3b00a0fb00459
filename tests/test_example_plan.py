"""The messages of the trainer before and after a run: photographs taken or left out, minutes, whether it helped."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for library in ("accelerate", "kornia", "PIL", "scipy", "sklearn", "timm"):
    pytest.importorskip(library)
from PIL import Image  # noqa: E402

HEIC_IS_READ = importlib.util.find_spec("pillow_heif") is not None
SMALL = (
    "--image-size", "16", "--patch-size", "4", "--group-size", "1", "2", "--dim", "32", "--depth", "2", "--heads", "2",
    "--batch-size", "8", "--draws", "2", "--labels", "25", "--rates", "1e-3", "--finetune-steps", "2",
    "--finetune-epochs", "1", "--threads", "1", "--precision", "no",
)  # fmt: skip


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    return importlib.import_module


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Make two classes of ten photographs each, and all that lies about in people's folders."""
    folder, generator = tmp_path / "mine", np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name / "2019" / "summer").mkdir(parents=True)
        for i in range(10):
            pixels = generator.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / ("2019/summer" if i % 2 else "2019") / f"{i}.jpg")
    cats = folder / "cats"
    Image.new("CMYK", (40, 40)).save(cats / "cmyk.jpg")
    Image.new("RGB", (5000, 1)).save(cats / "thin.png")
    Image.new("RGB", (40, 40)).save(cats / "moving.gif")
    (cats / "cut.jpg").write_bytes((cats / "cmyk.jpg").read_bytes()[:200])
    (cats / "empty.png").touch()
    for name in ("phone.heic", "camera.NEF", "no extension", "notes.txt"):
        (cats / name).write_bytes(b"?")
    (cats / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    return folder


def test_a_plan_names_what_is_taken_and_left_out_and_writes_nothing(
    photographs: Path, examples: Callable[[str], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    examples("pretrain").main(["--data", str(photographs), "--output", str(run), "--dry-run", *SMALL])
    plan = capsys.readouterr().out
    assert not run.exists()
    taken, held_out = map(int, re.search(r"images +(\d+) to train on, (\d+) held out", plan).groups())  # type: ignore[union-attr]
    assert taken + held_out == 21
    assert "40x30 to 40x40 pixels" in plan or "40x30 to 5000x1" in plan
    for words in (
        "1 GIF", "1 dangling links", "1 raw", "1 thin",
        "3 unreadable" if HEIC_IS_READ else "1 HEIC (pip install pillow-heif)",
        "1 without an extension", "1 of other kinds", "2: cats (8), dogs (8)", "16 patches of 4x4", "4 fine-tunings",
    ):  # fmt: skip
        assert words in plan, plan
    assert re.search(r"pretraining +200 epochs, \d+ steps: \d+", plan)


def test_a_folder_of_fewer_images_than_a_step_takes_says_what_to_give(
    photographs: Path, examples: Callable[[str], Any], tmp_path: Path
) -> None:
    message = r"--batch-size \d+, the default, is more than the 1[67] images to train on; give --batch-size 16 or less"
    with pytest.raises(SystemExit, match=message):
        examples("pretrain").main(["--data", str(photographs), "--output", str(tmp_path / "run"), "--dry-run"])


def test_heic_is_read_where_pillow_heif_is_there(
    photographs: Path, examples: Callable[[str], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(photographs / "cats/phone.heic", quality=90)
    examples("pretrain").main(["--data", str(photographs), "--output", str(tmp_path / "run"), "--dry-run", *SMALL])
    assert "HEIC" not in capsys.readouterr().out
    red = examples("reference.data.photos").read(photographs / "cats/phone.heic", 48)
    assert red.shape == (3, 48, 48)
    assert red[0].float().mean() > 240


def test_one_ratio_is_from_and_to(
    photographs: Path, examples: Callable[[str], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    examples("pretrain").main(
        ["--data", str(photographs), "--output", str(tmp_path / "run"), "--ratio", "0.6", "--epochs", "1", *SMALL]
    )
    assert json.loads((tmp_path / "run/config.json").read_text())["ratio"] == [0.6, 0.6]


def test_minutes_pick_the_epochs_and_a_resumed_run_keeps_them(
    photographs: Path, examples: Callable[[str], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pretrain, run = examples("pretrain").main, tmp_path / "run"
    common = ["--data", str(photographs), "--output", str(run), *SMALL]
    with pytest.raises(SystemExit, match=r"is too short: an epoch takes .*; give --minutes \d+, fewer --rates"):
        pretrain([*common, "--minutes", "0.00001"])
    with pytest.raises(SystemExit):
        pretrain([*common, "--minutes", "1", "--epochs", "3"])
    assert not run.exists()
    pretrain([*common, "--minutes", "0.1"])
    printed = capsys.readouterr().out
    epochs = int(re.search(r"pretraining +([\d,]+) epochs", printed)[1].replace(",", ""))  # type: ignore[index]
    config = json.loads((run / "config.json").read_text())
    assert (config["epochs"], config["threads"], config["precision"]) == (epochs, 1, "no")
    assert re.search(r"Pretraining helped|Whether pretraining helped is open|Pretraining hurt", printed)
    with pytest.raises(SystemExit):
        pretrain([*common, "--minutes", "0.2"])
    assert "is finished" in capsys.readouterr().err  # and not: made with other epochs


def test_a_tree_of_years_is_taken_without_labels(
    photographs: Path, examples: Callable[[str], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    examples("pretrain").main(
        ["--data", str(photographs), "--output", str(run), "--no-labels", "--epochs", "1", *SMALL]
    )
    plan = capsys.readouterr().out
    assert "21 to train on, 0 held out" in plan
    assert "none: nothing is compared at the end" in plan
    examples("visualise").main([str(run)])  # finds the same images again
    assert (run / "reconstructions.png").exists()
    examples("embed").main([str(run), str(photographs), "--output", str(tmp_path / "out")])
    heic = "" if HEIC_IS_READ else "1 HEIC (pip install pillow-heif), "
    assert f"left out: 1 GIF, {heic}1 dangling links, 1 of other kinds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ([5.0], r"\+5.0 points over 1 draw of the labels: too few to tell"),
        ([5.0, 6.0, 5.5], r"helped: \+5.5 ± 0.5 points over 3 draws of the labels, more than chance"),
        ([-5.0, -6.0, -5.5], r"hurt: -5.5 ± 0.5 points"),
        ([5.0, -6.0, 3.0], "may be chance"),
        ([0.0, 0.0], r"may be chance \(t-test, p = 1\)"),
    ],
)
def test_a_verdict_says_what_chance_would_do(gains: list[float], words: str, examples: Callable[[str], Any]) -> None:
    assert re.search(words, examples("reference.comparison").verdict(gains))
