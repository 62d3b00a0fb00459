"""Pictures of a pretrained network: what they show is what the network computes."""

# ruff: noqa: E402 (what is missing skips the file before it is imported)
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

for library in ("accelerate", "kornia", "matplotlib", "safetensors", "sklearn", "timm", "torchvision"):
    pytest.importorskip(library)
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import pretrain
import visualise
from accelerate import Accelerator
from reference import pictures
from reference.checkpoint import tensors
from reference.config import Config, config_of_finished
from reference.data import load
from reference.model import Autoencoder, build

from gmml_aug import GroupMask

PICTURES = ("attention.png", "blocks.png", "reconstructions.png")
SMALL = ("--dim", 32, "--depth", 3, "--heads", 2, "--epochs", 1, "--draws", 0)


def train(output: Path, *words: object) -> Path:
    pretrain.main([str(word) for word in ("--output", output, *words)])
    return output


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose output is its last block's alone; it has a class token."""
    return train(tmp_path_factory.mktemp("runs") / "digits", *SMALL, "--blocks", 3, "--fuse", "last")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Keep the figures that are saved, by the name of their files."""
    figures: dict[str, Figure] = {}
    save = Figure.savefig

    def kept(figure: Figure, path: Any, **options: Any) -> None:
        figures[getattr(path, "name", "in report.html")] = figure
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    return figures


def autoencoder(blocks: list[int] | None = None, name: str = "vit_tiny_patch16_224", **options: Any) -> Autoencoder:
    torch.manual_seed(0)
    shape = {"img_size": 16, "patch_size": 4, "in_chans": 3, "embed_dim": 32, "depth": 3, "num_heads": 2}
    return Autoencoder(name, {**shape, "num_classes": 0, "fc_norm": False, **options}, blocks).eval()


def outlined(axis: Any) -> list[float]:
    """Return left, right, upper and lower end of the lines drawn on a picture."""
    ends = torch.cat([torch.tensor(path.vertices) for lines in axis.collections for path in lines.get_paths()])
    x, y = ends.unbind(1)
    return [float(end) for end in (x.min(), x.max(), y.min(), y.max())]


def drawn_values(axis: Any) -> Tensor:
    return torch.tensor(axis.images[0].get_array().data)


def check_sizes(run: Path) -> None:
    for name in PICTURES:
        with Image.open(run / name) as image:
            assert min(image.size) > 500
            assert max(image.size) < 4000
            assert len(set(image.convert("L").tobytes())) > 50


def test_a_run_of_digits(digits: Path, drawn: dict[str, Figure]) -> None:
    visualise.main([str(digits), "--patches", "2,4", "3,1"])
    check_sizes(digits)

    titles = [axis.get_title() for axis in drawn["reconstructions.png"].axes[:12]]
    assert all(title.split("\n")[0] in "0123456789" and title.endswith(("(noise)", "(alien)")) for title in titles)

    plot = drawn["blocks.png"].axes[-1]
    assert [text.get_text() for text in plot.get_xticklabels()][1:] == ["block 1", "block 2", "block 3", "output"]
    donor, own, third = values(plot)
    assert donor[0] == 0
    assert own[0] == pytest.approx(third[0], rel=0.15)  # the donor is as far as any image
    for line in (donor, own, third):
        assert min(line[1:]) > 0.02
        assert line[3] == pytest.approx(line[4], abs=1e-6)  # the last block alone is the network's output

    axes = drawn["attention.png"].axes
    for axis in axes[1:3] + axes[4:6]:  # no panel is black beside a brighter one
        largest = float(drawn_values(axis).max())
        assert axis.images[0].get_clim() == pytest.approx((0, largest))
        assert axis.get_xlabel() == f"up to {largest:.3g} %"
    assert len(axes) == 4 * 3
    assert ["row 2, column 4" in axes[1].get_title(), "row 3, column 1" in axes[2].get_title()] == [True, True]
    assert outlined(axes[1]) == [2.5, 3.5, 0.5, 1.5]
    assert outlined(axes[2]) == [-0.5, 0.5, 1.5, 2.5]
    assert outlined(axes[0]) == [-0.5, 7.5, 1.5, 5.5]  # both, in pixels


def values(plot: Any) -> list[list[float]]:
    """Return the three lines of the blocks' plot; each is followed by its output, drawn apart."""
    points = [[float(y) for y in container.lines[0].get_ydata()] for container in plot.containers]
    return [points[i] + points[i + 1] for i in (0, 2, 4)]


def test_what_the_heat_maps_show_is_the_attention_from_the_asked_patch(digits: Path, drawn: dict[str, Figure]) -> None:
    visualise.main([str(digits), "--patches", "2,4", "--seed", "3"])
    axes = drawn["attention.png"].axes
    model = build(config_of_finished(digits), 1)[0].eval()
    model.load_state_dict(tensors(digits / "autoencoder.safetensors"))
    shown = drawn_values(axes[0])[None, None]
    data = load("digits", 8, torch.device("cpu"))
    weights = pictures.attention(model, (shown - data.mean[0]) / data.std[0])
    expected = 100 * weights[0].mean(0)[1 + 1 * 4 + 3, 1:].view(4, 4)  # after the class token: row 2, column 4
    assert torch.allclose(drawn_values(axes[1]), expected.detach(), atol=1e-4)


def test_a_folder_of_photographs_without_labels(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    (tmp_path / "photos").mkdir()
    torch.manual_seed(0)
    for i in range(9):
        pixels = torch.rand(3, 5, 5).repeat_interleave(8, 1).repeat_interleave(8, 2).movedim(0, -1)
        Image.fromarray((255 * pixels).byte().numpy()).save(tmp_path / f"photos/{i}.png")
    run = train(tmp_path / "run", "--data", tmp_path / "photos", *SMALL, "--batch-size", 4)
    visualise.main([str(run)])
    check_sizes(run)
    assert "training images" in pictures.held_out(load(str(tmp_path / "photos"), 32, torch.device("cpu")))[1]
    assert drawn["reconstructions.png"].axes[0].get_title().startswith("image 0\n")


def test_a_model_with_register_tokens(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    registers = ("--model", "vit_little_patch16_reg4_gap_256")
    run = train(tmp_path / "run", *registers, *SMALL, "--batch-size", 512)
    visualise.main([str(run)])
    check_sizes(run)
    assert drawn["attention.png"].axes[1].images[0].get_size() == (4, 4)


def test_blocks_without_an_attention_of_their_own(
    tmp_path: Path, drawn: dict[str, Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", "--model", "vit_small_patch16_18x2_224", *SMALL, "--batch-size", 512)
    visualise.main([str(run)])
    assert {"reconstructions.png", "blocks.png"} <= {path.name for path in run.iterdir()}
    assert "attention is not drawn: the last block of vit_small_patch16_18x2_224 is" in capsys.readouterr().out
    assert not (run / "attention.png").exists()


def test_with_two_held_out_images_training_images_are_drawn(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    for part, number in (("train", 4), ("test", 1)):
        for name in ("a", "b"):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(tmp_path / f"photos/{part}/{name}/{i}.png")
    run = train(tmp_path / "run", "--data", tmp_path / "photos", *SMALL, "--batch-size", 4)
    assert "Training images" in str(drawn["step-000002.png"].get_suptitle())
    visualise.main([str(run)])
    check_sizes(run)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_block_is_decoded_as_the_network_does_it(block: int) -> None:
    model, images = autoencoder([block]), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(pictures.decoded(model, images)[block - 1], model(images))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_little_patch16_reg4_gap_256"])
def test_attention_is_what_the_last_block_weighs_values_with(name: str) -> None:
    model, images = autoencoder(None, name), torch.randn(2, 3, 16, 16)
    seen: list[Tensor] = []
    last: Any = model.encoder.blocks[-1]
    handle = last.attn.register_forward_hook(lambda _module, given, result: seen.extend([given[0], result]))
    with torch.no_grad():
        model(images)
        handle.remove()
        weights = pictures.attention(model, images)
        tokens, result = seen
        assert weights.shape == (2, 2, tokens.shape[1], tokens.shape[1])
        assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:3]), atol=1e-5)
        value = last.attn.qkv(tokens).unflatten(2, (3, 2, -1))[:, :, 2].transpose(1, 2)
        assert torch.allclose(last.attn.proj((weights @ value).transpose(1, 2).flatten(2)), result, atol=1e-5)


def test_training_goes_on_as_if_nothing_had_been_drawn(tmp_path: Path) -> None:
    data = load("digits", 8, torch.device("cpu"))
    # Wrapped, as pretrain.py has it: only its forward can be called.
    model = nn.Sequential(autoencoder(None, img_size=8, patch_size=2, in_chans=1)).train()
    corrupt = GroupMask(2, ratio=(0.5, 0.5), fill={"noise": 1, "alien": 1}, group_size=(1, 2), seed=0)
    before = torch.get_rng_state()
    pictures.draw_reconstructions(Config(), model, data, corrupt, tmp_path / "sheet.png", Accelerator())
    assert (tmp_path / "sheet.png").exists()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


class Nothing(nn.Module):
    """Predicts 0 for every pixel."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros_like(images)


def test_what_normalised_targets_lack_comes_from_the_original(drawn: dict[str, Figure], tmp_path: Path) -> None:
    data = load("digits", 8, torch.device("cpu"))
    corrupt = GroupMask(2, ratio=0.5, fill="noise", seed=0)
    config = Config(image_size=8, patch_size=2, targets="patches")
    pictures.draw_reconstructions(config, Nothing(), data, corrupt, tmp_path / "sheet.png", Accelerator())
    shown = [torch.tensor(axis.images[0].get_array()).unflatten(0, (4, 2)).unflatten(2, (4, 2)) for axis in
             drawn["sheet.png"].axes]  # fmt: skip
    for original, reconstruction in zip(shown[:12], shown[24:36], strict=True):
        assert torch.allclose(reconstruction.mean((1, 3)), original.mean((1, 3)), atol=1e-5)
        assert not torch.allclose(reconstruction, original, atol=1e-2)


def test_blocks_of_normalised_targets(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    run = train(tmp_path / "run", *SMALL, "--targets", "patches")
    visualise.main([str(run)])
    assert "Each patch has mean 0 and spread 1" in str(drawn["blocks.png"].subfigs[0].get_suptitle())
    original = torch.tensor(drawn["blocks.png"].axes[0].images[0].get_array())
    blank, side = original[0, 0], 8  # the digits' corners are of one colour, and so their patches' mean
    assert original.shape == (side, side)
    assert blank == pytest.approx(float(load("digits", 8, torch.device("cpu")).mean[0]), abs=1e-5)


def test_of_a_rival_the_encoder_alone_is_shown(
    tmp_path: Path, drawn: dict[str, Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", "--method", "mae", "--dim", 32, *SMALL[2:])
    described = json.loads((run / "encoder.json").read_text())["pretrained_cfg"]
    assert described["tag"] == "mae"
    assert described["description"].startswith("Pretrained by MAE (gmml_aug) on digits")
    assert not list((run / "reconstructions").iterdir())
    visualise.main([str(run)])
    assert "of a run with --method mae the encoder is kept, and no decoder" in capsys.readouterr().out
    assert drawn.keys() & set(PICTURES) == {"attention.png"}


def test_the_first_sheet_comes_with_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reference.training.FIRST_SHEET", 1e-9)
    run = train(tmp_path / "run", *SMALL)
    steps = sorted(int(path.stem[5:]) for path in (run / "reconstructions").iterdir())
    assert steps[0] == 1
    assert steps[-1] == 22
    assert len(steps) > 2


def test_wrong_arguments_end_before_anything_is_drawn(
    tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, photos = tmp_path / "run", tmp_path / "photos"
    run.mkdir()
    for name in ("config.json", "autoencoder.safetensors"):
        (run / name).write_bytes((digits / name).read_bytes())
    photos.mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(photos / f"{i}.png")

    for words, error in (
        ((tmp_path,), "no config.json"),
        ((run, "--data", photos), "on images of 1 channels; those of photos have 3"),
        ((run, "--data", "nowhere"), "there is no folder 'nowhere'"),
    ):
        with pytest.raises(SystemExit, match=error):
            visualise.main([str(word) for word in words])
    for patch, error in (
        ("2,5", "from 1 to 4; got 2,5"),
        ("0,1", "from 1 to 4; got 0,1"),
        ("two", "--patches: invalid"),
    ):
        with pytest.raises(SystemExit):
            visualise.main([str(run), "--patches", patch])
        assert error in capsys.readouterr().err
    (run / "autoencoder.safetensors").unlink()
    with pytest.raises(SystemExit, match="not finished"):
        visualise.main([str(run)])
    assert not list(run.glob("*.png"))
