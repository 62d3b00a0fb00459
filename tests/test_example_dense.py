"""The dense probe: what a frozen network's tokens know of every pixel, on scenes that are drawn here."""

# ruff: noqa: E402 (what is missing skips the file before it is imported)
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for library in ("accelerate", "kornia", "matplotlib", "safetensors", "sklearn", "timm", "torchvision"):
    pytest.importorskip(library)
import torchvision
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))
import dense
import pretrain
from reference import dense as probing
from reference.checkpoint import tensors
from reference.config import config_of_finished
from reference.model import build
from sklearn.linear_model import LogisticRegression

SMALL = (
    "--dim", 32, "--depth", 2, "--heads", 2, "--image-size", 32, "--patch-size", 4, "--batch-size", 16, "--draws", 0,
    "--precision", "no", "--threads", 1,
)  # fmt: skip
GROUND, DISC, SQUARE = 0, 3, 7  # the classes need not be consecutive


def scene(number: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture and its label map: on noise a striped disc and a chequered square, alike in mean colour."""
    random = np.random.default_rng(number)
    picture = 128 + random.normal(0, 10, (side, side, 3))
    labels = np.full((side, side), GROUND, np.uint8)
    y, x = np.mgrid[:side, :side]
    textures = {DISC: np.where(x % 2, 60, -60), SQUARE: np.where((x // 2 + y // 2) % 2, 60, -60)}
    left = random.integers(2) * side // 2
    for kind, start in ((DISC, left), (SQUARE, side // 2 - left)):
        cy, cx, radius = random.integers(side // 3, 2 * side // 3), start + side // 4, side / 5
        far = np.maximum(abs(y - cy), abs(x - cx)) if kind == SQUARE else np.hypot(y - cy, x - cx)
        labels[far < radius] = kind
    for kind, texture in textures.items():
        picture[labels == kind] += texture[labels == kind, None]
    labels[:2] = 255
    return picture.clip(0, 255).astype(np.uint8), labels


def draw_scenes(folder: Path, count: int, side: int = 32) -> None:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        picture, labels = scene(number, side)
        Image.fromarray(picture).save(folder / f"images/{number}.png")
        Image.fromarray(labels).save(folder / f"labels/{number}.png")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "scenes"
    draw_scenes(folder, 60)
    return folder


@pytest.fixture(scope="module")
def run(scenes: Path) -> Path:
    output = scenes.parent / "run"
    pretrain.main([str(word) for word in ("--data", scenes / "images", "--output", output, "--epochs", 2, *SMALL)])
    return output


def test_textures_are_told_apart_by_tokens_and_not_by_colour(
    run: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense.main([str(run), "--data", str(scenes)])
    said = capsys.readouterr().out
    written = json.loads((run / "dense.json").read_text())
    found = written["mean_iou"]
    assert written["images"] == 60
    assert written["held_out"] == 12
    assert written["classes"] == [GROUND, DISC, SQUARE]
    assert all(f"{side:<16}{value:5.1f}" in said for side, value in found.items())
    assert list(found) == ["pretrained", "untrained", "colour alone"]
    assert found["pretrained"] > 50 > found["colour alone"]
    dense.main([str(run), "--data", str(scenes)])
    assert json.loads((run / "dense.json").read_text())["mean_iou"] == found  # nothing is left to chance


def test_pretrained_and_untrained_tokens_are_those_of_the_network(run: Path, scenes: Path) -> None:
    settings = config_of_finished(run)
    images, _ = probing.read(str(scenes), 32)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    model = build(settings, 3)[0].eval()
    model.load_state_dict(tensors(run / "autoencoder.safetensors"))
    with torch.no_grad():
        expected = model.features((images / 255 - mean) / std)
    cpu = torch.device("cpu")
    assert torch.allclose(probing.tokens_of("pretrained", run, settings, images, cpu), expected, atol=1e-4)
    assert not torch.allclose(probing.tokens_of("untrained", run, settings, images, cpu), expected, atol=1e-2)
    colour = probing.tokens_of("colour alone", run, settings, images, cpu)
    assert colour.shape == (60, 64, 3)
    assert torch.allclose(colour[5, 9], images[5, :, 4:8, 4:8].float().mean((1, 2)) / 255)  # row 1, column 1


def test_the_figure_is_the_one_by_hand() -> None:
    """Two classes, patches of 2 pixels: fitted and counted pixel by pixel."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (10, 4, 4), generator=random).repeat_interleave(2, 1).repeat_interleave(2, 2) * 5
    labels[:, 0, 0] = 255
    labels[0] = 255  # an image of which nothing is known
    tokens = torch.randn(10, 16, 3, generator=random) + labels[:, 1::2, 1::2].flatten(1)[..., None] / 5
    train, test = list(range(8)), [8, 9]
    found = probing.judged(tokens, labels.to(torch.uint8), [0, 5], 2, train, test)

    x = np.concatenate([tokens[i].numpy() for i in range(1, 8)])
    y = np.concatenate([labels[i, 1::2, 1::2].flatten().numpy() for i in range(1, 8)])
    mean, std = x.mean(0), x.std(0)
    layer = LogisticRegression(max_iter=1000).fit((x - mean) / std, y)
    both, either = {0: 0, 5: 0}, {0: 0, 5: 0}
    for i in test:
        scores = layer.decision_function((tokens[i].numpy() - mean) / std).reshape(4, 4)
        for r in range(8):
            for c in range(8):
                # Bilinear between the middles of patches, as far as there are any.
                v, u = min(max((r + 0.5) / 2 - 0.5, 0), 3), min(max((c + 0.5) / 2 - 0.5, 0), 3)
                top, left = min(int(v), 2), min(int(u), 2)
                v, u = v - top, u - left
                (a, b), (d, e) = scores[top : top + 2, left : left + 2]
                said = 5 if (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * d + u * e) > 0 else 0
                is_there = int(labels[i, r, c])
                for k in (0, 5):
                    if is_there != 255:
                        both[k] += said == k == is_there
                        either[k] += k in (said, is_there)
    assert found == pytest.approx(50 * (both[0] / either[0] + both[5] / either[5]), abs=1e-6)


def test_mean_iou_counts_classes_that_occur() -> None:
    confusion = torch.tensor([[6, 2, 0, 0], [0, 4, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert probing.mean_iou(confusion) == pytest.approx((6 / 8 + 4 / 7 + 0 / 1) / 3)


def test_images_and_label_maps_are_cut_alike(tmp_path: Path) -> None:
    """The middle square of a wide picture, made smaller; a palette's numbers are the classes."""
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for i in range(5):
        labels = np.zeros((40, 64), np.uint8)
        labels[:20, 12:32], labels[:, :12] = 1, 9  # the upper left quarter of the middle; what is cut off
        picture = np.where(labels[..., None] == 1, 255, 0) * np.ones(3)
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / f"images/{i}.jpg", quality=95)
        drawn = Image.fromarray(labels).convert("P")
        drawn.putdata(labels.flatten())
        drawn.save(tmp_path / f"labels/{i}.png")
    images, labels_read = probing.read(str(tmp_path), 20)
    assert labels_read.unique().tolist() == [0, 1]
    assert labels_read[0, :10, :10].all()
    assert labels_read.sum() == 5 * 100
    bright = images.float().mean(1) > 128
    assert (bright == (labels_read == 1)).float().mean() > 0.97


def test_pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(root: str, target_types: str, download: bool) -> list[tuple[Image.Image, Image.Image]]:
        assert target_types == "segmentation"
        trimap = np.array([[1, 2], [3, 1]], np.uint8).repeat(4, 0).repeat(4, 1)
        return [(Image.new("RGB", (8, 8)), Image.fromarray(trimap))] * 5

    monkeypatch.setattr(torchvision.datasets, "OxfordIIITPet", made)
    images, labels = probing.read("torchvision:OxfordIIITPet", 8)
    assert images.shape == (5, 3, 8, 8)
    assert labels[0, ::4, ::4].tolist() == [[0, 1], [255, 0]]

    def fails(*given: object, **named: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "OxfordIIITPet", fails)
    with pytest.raises(SystemExit, match="cannot be downloaded: no network"):
        probing.read("torchvision:OxfordIIITPet", 8)


def test_what_is_no_folder_of_scenes_is_refused(tmp_path: Path) -> None:
    def refused(why: str, name: object = tmp_path) -> None:
        with pytest.raises(SystemExit, match=why):
            probing.read(str(name), 16)

    refused("takes torchvision:OxfordIIITPet, or a folder with images/ and labels/; got 'nowhere'", "nowhere")
    refused("has no images/")
    draw_scenes(tmp_path / "four", 4)
    refused("has 4 images: to be split 4 to 1 there are at least 5", tmp_path / "four")
    draw_scenes(tmp_path / "scenes", 5)
    label = tmp_path / "scenes/labels/2.png"
    for wrong, why in (
        (Image.new("RGB", (32, 32)), "one byte a pixel, grey or of a palette; got RGB"),
        (Image.new("L", (16, 32)), r"2.png has \(32, 32\) pixels, its label map \(16, 32\)"),
    ):
        wrong.save(label)
        refused(why, tmp_path / "scenes")
    label.write_bytes(b"no picture")
    refused("2.png cannot be read", tmp_path / "scenes")
    label.unlink()
    refused("1 files have no other half, .* such as 2", tmp_path / "scenes")


def test_one_class_and_another_number_of_channels_are_refused(tmp_path: Path, scenes: Path, run: Path) -> None:
    with pytest.raises(SystemExit, match="fewer than two classes"):
        probing.judged(torch.randn(5, 4, 3), torch.zeros(5, 8, 8), [0], 4, [0, 1, 2, 3], [4])
    digits = tmp_path / "digits"
    shape: tuple[Any, ...] = ("--epochs", 1, "--dim", 16, "--depth", 1, "--heads", 1, "--draws", 0, "--threads", 1)
    pretrain.main([str(word) for word in ("--output", digits, *shape)])
    with pytest.raises(SystemExit, match="images of 1 channels; photographs have 3"):
        dense.main([str(digits), "--data", str(scenes)])
