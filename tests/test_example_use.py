"""The use of a finished run: its encoder in plain timm, features of photographs, a classifier and its predictions."""

# ruff: noqa: E402 (what is missing skips the file before it is imported)
from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

for library in ("accelerate", "kornia", "matplotlib", "safetensors", "sklearn", "timm", "torchvision"):
    pytest.importorskip(library)
import safetensors.torch
import timm
from matplotlib.figure import Figure
from PIL import Image
from timm.data.transforms_factory import create_transform

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))
import embed
import evaluate
import finetune
import pretrain
from reference import embedding
from reference.data import load
from reference.evaluation import evaluation_of
from reference.finished import opened
from reference.views import Views

SMALL = (
    "--dim", 16, "--depth", 4, "--heads", 2, "--image-size", 16, "--patch-size", 4, "--epochs", 1, "--batch-size", 16,
    "--draws", 0,
)  # fmt: skip
CPU = torch.device("cpu")
COLOURS = {"blue": (40, 60, 200), "green": (30, 180, 60), "red $1$": (210, 50, 30)}


def words(*given: object) -> list[str]:
    return [str(word) for word in given]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of noisy photographs of 24 to 31 by 24 pixels, one folder a colour."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name / "deep").mkdir(parents=True)
        for i in range(10):
            pixels = np.array(colour) + random.normal(0, 20, (24, 24 + i % 8, 3))
            path = folder / name / ("deep" if i % 2 else "") / f"{i}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return folder


def pretrained(photos: Path, *given: object) -> Path:
    run = photos.parent / f"run{len(list(photos.parent.iterdir()))}"
    pretrain.main(words("--data", photos, "--output", run, *SMALL, *given))
    return run


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    return pretrained(photos)


@pytest.fixture(scope="module")
def classifier(run: Path, photos: Path) -> Path:
    finetune.main(words(run, "--data", photos, "--epochs", 40, "--lr", 5e-3))
    return run / "classifier.safetensors"


def in_timm(run: Path, photo: Image.Image) -> dict[str, Any]:
    """Return what the README's lines of loading and of fusing make of a photograph."""
    text = (ROOT / "examples/README.md").read_text()
    load_it, fuse_it = (
        match[1]
        for match in re.finditer(r"^```\n((?:encoder|tokens) = .*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    )
    space = {"timm": timm, "json": json, "safetensors": safetensors, "torch": torch, "photo": photo}
    with torch.no_grad():
        exec(load_it.replace("runs/mine", str(run)), space)
        space["images"] = space["transform"](photo)[None]  # type: ignore[operator]
        if len(space["encoder"].blocks) == 4:  # type: ignore[attr-defined]
            exec(fuse_it, space)
    return space


def test_the_encoder_in_plain_timm_gives_the_evaluated_features_of_the_last_block(photos: Path) -> None:
    run = pretrained(photos, "--fuse", "last", "--blocks", 2)
    photo = Image.open(photos / "green/2.png")
    space = in_timm(run, photo)
    body = evaluation_of(opened(run, None)).autoencoder("pretrained", 0).eval()
    with torch.no_grad():
        expected = body.pooled(space["images"])
    assert len(space["encoder"].blocks) == 2  # those after the fused one are untrained
    assert torch.allclose(space["features"], expected, atol=1e-5)


def test_the_encoder_of_fused_blocks(run: Path, photos: Path) -> None:
    photo = Image.open(photos / "green/2.png")
    space = in_timm(run, photo)
    encoder = space["encoder"]
    evaluation = evaluation_of(opened(run, None))
    body = evaluation.autoencoder("pretrained", 0).eval()
    with torch.no_grad():
        assert torch.allclose(space["evaluated"], body.pooled(space["images"]), atol=1e-5)
        last = encoder.norm(body.outputs(space["images"], [4])[0]).mean(1)
    assert torch.allclose(space["features"], last, atol=1e-5)
    assert not torch.allclose(space["features"], space["evaluated"], atol=1e-3)
    assert encoder.pretrained_cfg["notes"] == ["Evaluated features: blocks 2, 4 (counted from 1), fused by mean."]
    assert encoder.pretrained_cfg["label_names"] == list(COLOURS)
    assert "hf_hub_id" not in encoder.pretrained_cfg
    assert "imagenet" not in json.dumps(encoder.pretrained_cfg).lower()
    assert "in1k" not in json.dumps(encoder.pretrained_cfg)


def test_timms_transform_is_the_plain_view(run: Path, photos: Path) -> None:
    path = photos / "green/0.png"  # a square, of which none is cut off by half pixels: 24 pixels, to 18, to 16
    config = json.loads((run / "encoder.json").read_text())["pretrained_cfg"]
    assert config["crop_pct"] == pytest.approx(16 / 18, abs=1e-6)
    plain: list[Tensor] = []

    def listening(images: Tensor) -> Tensor:
        plain.append(images)
        return images.flatten(1)

    embedding.described(listening, [path], config, CPU)
    found = in_timm(run, Image.open(path))["images"]
    assert (plain[0] - found).abs().max() < 0.05  # rounding to uint8 is 0.02 of a standard deviation


@pytest.mark.parametrize(("size", "side"), [(16, 18), (106, 121), (224, 256), (32, 32)])
def test_the_crop_is_the_side_that_images_are_stored_at(tmp_path: Path, size: int, side: int) -> None:
    Image.new("RGB", (side, side + 3)).save(tmp_path / "1.png")
    data = load(str(tmp_path), size, CPU)
    assert data.train.side == side
    config = data.timm_config
    assert int(size / config["crop_pct"]) == side
    resized = create_transform(**config).transforms[0].size
    assert resized == side
    assert Views(data).plain(next(data.train.batches([torch.tensor([0])])).images).shape[-1] == size


def test_features_of_photographs(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photograph")
    first = photos / "blue/0.png"
    embed.main(words(run, first, broken, photos, "--output", tmp_path / "out"))
    printed = capsys.readouterr()
    assert f"skipped {broken}, which cannot be read" in printed.err
    assert "30 photographs, 16 features each" in printed.out
    found = np.load(tmp_path / "out/features.npz")
    assert found["features"].dtype == np.float32
    assert found["features"].shape == (30, 16)
    assert len(set(found["paths"])) == 30
    assert found["paths"][0] == str(first)
    with Image.open(tmp_path / "out/neighbours.png") as image:
        assert min(image.size) > 500

    evaluation = evaluation_of(opened(run, None))
    evaluated = np.concatenate([array for array in evaluation.described("pretrained") if array.ndim == 2])
    for row in found["features"]:  # each is among those that are evaluated
        assert np.abs(evaluated - row).max(1).min() < 1e-4


def test_neighbours_are_the_nearest_by_cosine(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [path for path in embedding.find([photos]) if "0" in path.name or "2" in path.name]
    features = np.eye(6, 4, dtype=np.float32) + 0.1
    features[5] = 7 * features[0]
    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    embedding.draw_neighbours(features, paths, tmp_path / "sheet.png")
    titles = [axis.get_title() for axis in figures[0].axes]
    names = ["/".join(path.parts[-2:]) for path in paths]
    assert titles[0] == names[0]
    assert titles[1] == f"{names[5]}\n1.000"


def test_a_classifier_and_its_predictions(classifier: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads(classifier.with_suffix(".json").read_text())
    assert about["classes"] == list(COLOURS)
    assert (about["training_images"], about["held_out_images"]) == (24, 6)
    assert about["accuracy"] > 80  # colours; chance is 33
    for given in (classifier.parent, classifier):
        finetune.main(words(given, "--predict", *(photos / name / "4.png" for name in COLOURS)))
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        for line, name in zip(lines, COLOURS, strict=True):
            path, _, said = line.partition(".png: ")
            assert path.endswith("4")
            pairs = re.findall(r"([^,]+?) ([\d.]+) %", said)
            percentages = [float(value) for _, value in pairs]
            assert percentages == sorted(percentages, reverse=True)
            assert sum(percentages) == pytest.approx(100, abs=0.2)
            assert pairs[0][0] == name


def test_wrong_input_is_refused(
    run: Path, classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"no photograph")
    (tmp_path / "cut.safetensors").write_bytes(classifier.read_bytes()[:5000])
    (tmp_path / "cut.json").write_bytes(classifier.with_suffix(".json").read_bytes())
    before = sorted(run.iterdir())
    for main, given, error in (
        (embed.main, (run, tmp_path / "nowhere"), "there is no .*nowhere: give photographs"),
        (embed.main, (run, tmp_path / "empty"), "there are no photographs in .*empty"),
        (embed.main, (run, tmp_path / "broken.jpg"), "none of the 1 photographs can be read"),
        (embed.main, (tmp_path, photos), "no config.json"),
        (embed.main, (run, photos, "--output", photos / "out"), "is inside .*photos"),
        (finetune.main, (run, "--data", photos), "exists and is not overwritten"),
        (finetune.main, (run, "--data", photos / "blue/deep", "--output", tmp_path / "c.safetensors"), "no labels"),
        (finetune.main, (run, "--data", "digits", "--output", tmp_path / "c.safetensors"), "8 pixels a side"),
        (finetune.main, (tmp_path, "--predict", photos), "train a classifier first"),
        (finetune.main, (run / "encoder.safetensors", "--predict", photos), "describes no classifier"),
        (finetune.main, (run, "--predict", tmp_path / "nowhere"), "there is no .*nowhere"),
        (finetune.main, (tmp_path / "cut.safetensors", "--predict", photos), "cut.safetensors cannot be read"),
        (embed.main, (run, photos, "--output", tmp_path / "broken.jpg"), "broken.jpg cannot be made: .* is a file"),
    ):
        with pytest.raises(SystemExit, match=error) as raised:
            main(words(*given))
        assert "\n" not in str(raised.value)
    wrong: list[tuple[tuple[object, ...], str]] = [
        ((run,), "one of the arguments --data --predict is required"),
        ((run, "--data", photos, "--predict", photos), "not allowed with"),
        ((run, "--data", photos, "--epochs", 0), "at least 1; got 0"),
        ((run, "--data", photos, "--lr", "nan"), "more than 0 and finite; got nan"),
        ((run, "--data", photos, "--output", "x.json"), "ends in .safetensors; got x.json"),
        ((run, "--predict", photos, "--output", "x.safetensors"), "give it in RUN's place"),
    ]
    for options, error in wrong:
        with pytest.raises(SystemExit):
            finetune.main(words(*options))
        assert error in capsys.readouterr().err
    assert sorted(run.iterdir()) == before


def test_shares_of_the_labels_that_miss_a_class_are_left_out_where_none_are_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main(words(run, "--dry-run"))
    said = capsys.readouterr().out
    assert "leaves out 1 % of the labels: that is none of the 8 images of the smallest class" in said
    assert "leaves out 10 %" not in said
    with pytest.raises(SystemExit, match=r"none; give more than 6\.2 percent"):
        evaluate.main(words(run, "--dry-run", "--labels", 1))


def test_a_slash_after_the_folder_is_the_same_folder(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        pretrain.main(words("--data", f"{photos}/", "--output", run, *SMALL))
    assert "is finished: neither continued nor overwritten" in capsys.readouterr().err


def test_a_run_on_digits_takes_no_photographs(photos: Path, tmp_path: Path) -> None:
    pretrain.main(words("--output", tmp_path / "digits", "--dim", 16, "--depth", 2, "--heads", 2, "--epochs", 1,
                        "--batch-size", 512, "--draws", 0))  # fmt: skip
    with pytest.raises(SystemExit, match="takes 1 channels, photographs have 3: give a run on photographs"):
        embed.main(words(tmp_path / "digits", photos))
