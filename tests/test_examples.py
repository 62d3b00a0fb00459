"""The reference example: its main path, at a few steps, and what it refuses."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("timm")
pytest.importorskip("accelerate")
SHORT = ("--steps", "12", "--finetune-steps", "3", "--draws", "2")


@pytest.fixture
def pretrain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return the example's main function, which takes the command line's words."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    main: Callable[[list[str]], None] = importlib.import_module("pretrain").main
    return lambda *words: main([str(word) for word in words])


def test_digits_end_in_a_table_and_a_run_folder(
    tmp_path: Path, pretrain: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain("--output", tmp_path / "run", *SHORT)
    printed = capsys.readouterr().out
    for words in ("360 held-out images", "from scratch", "pretrained", "points"):
        assert words in printed
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == [
        "autoencoder.safetensors", "config.json", "encoder.safetensors", "metrics.jsonl", "reconstructions.png"
    ]  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == [10]
    assert len([line for line in lines if "finetune" in line]) == 4
    assert json.loads((tmp_path / "run/config.json").read_text())["steps"] == 12


def test_the_encoder_loads_into_plain_timm(tmp_path: Path, pretrain: Callable[..., None]) -> None:
    from safetensors.torch import load_file
    from timm.models.vision_transformer import VisionTransformer

    pretrain("--output", tmp_path, "--steps", 1, "--finetune-steps", 1, "--draws", 1)
    vit = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=4, num_heads=4,
        class_token=False, global_pool="avg", fc_norm=False, num_classes=0,
    )  # fmt: skip
    vit.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    assert vit(torch.zeros(1, 1, 8, 8)).shape == (1, 64)


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), (".",)])
def test_a_folder_of_images(
    tmp_path: Path, parts: tuple[str, ...], pretrain: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("PIL.Image")
    for part, number in zip(parts, (12, 4) if len(parts) == 2 else (20,), strict=True):
        for color in ("red", "green"):
            folder = tmp_path / "data" / part / color
            folder.mkdir(parents=True)
            for i in range(number):
                image.new("RGB", (40 + i, 36), color).save(folder / f"{i}.png")
    small = ("--dim", 32, "--depth", 2, "--heads", 2, "--batch-size", 8, "--labels-per-class", 2)
    pretrain("--data", tmp_path / "data", "--output", tmp_path / "run", *small, *SHORT)
    assert "8 held-out images of 2 classes" in capsys.readouterr().out
    assert (tmp_path / "run/reconstructions.png").exists()


def test_half_a_split_is_refused(tmp_path: Path, pretrain: Callable[..., None]) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    with pytest.raises(SystemExit, match="it needs train/ and test/"):
        pretrain("--data", tmp_path / "data", "--output", tmp_path / "run")


def test_help_lists_every_option(pretrain: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain("--help")
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--data", "--steps", "--base-lr", "--lr-scratch", "--group-size"))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--data", "/nowhere"), "there is no '/nowhere'"),
        (("--labels-per-class", 1000), "have fewer"),
        (("--patch-size", 3), "multiple of the patch"),
        (("--image-size", 16), "digits are 8 pixels"),
        (("--draws", 0), "2"),  # argparse's exit status
    ],
)
def test_wrong_arguments_end_before_anything_is_written(
    tmp_path: Path, pretrain: Callable[..., None], words: tuple[object, ...], error: str
) -> None:
    with pytest.raises((SystemExit, ValueError), match=error):
        pretrain("--output", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_the_model_averages_the_blocks_of_the_paper(pretrain: Callable[..., None]) -> None:
    from model import Autoencoder

    model = Autoencoder(image_size=16, patch_size=4, channels=3, dim=32, depth=12, heads=2).eval()
    assert [block + 1 for block in model.blocks] == [6, 8, 10, 12]
    outputs: list[Tensor] = []
    for block in model.blocks:
        model.encoder.blocks[block].register_forward_hook(lambda _module, _input, output: outputs.append(output))
    images = torch.randn(2, 3, 16, 16)
    features = model.features(images)
    assert torch.allclose(features, model.encoder.norm(torch.stack(outputs).mean(0)), atol=1e-6)
    assert model(images).shape == images.shape


def test_fills_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    from gmml_aug import GroupMask, patch_to_pixel

    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    own = importlib.import_module("own_fill")
    monkeypatch.setattr("sys.argv", ["own_fill.py", str(tmp_path / "sheet.png")])
    own.main()
    assert (tmp_path / "sheet.png").stat().st_size > 10_000

    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32)
    corrupt = GroupMask(4, 0.5, own.MeanColour(), seed=0)
    plan = corrupt.sample(images)
    out = corrupt.apply(images, plan).images
    group = patch_to_pixel(plan.group, 4)
    for number in plan.group[plan.mask].unique():
        for i in range(4):
            here = (group[i] == number).expand(3, -1, -1)
            mean = images[i][here].view(3, -1).mean(1, keepdim=True)
            assert torch.allclose(out[i][here].view(3, -1), mean, atol=1e-6)
    blurred = own.Blurred(sigma=2.0)
    with pytest.raises(TypeError, match="uint8"):
        GroupMask(4, fill=blurred)(images.to(torch.uint8))
    assert GroupMask(4, fill={blurred: 1, "noise": 1})(images).images.isfinite().all()
