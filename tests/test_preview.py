"""The contact sheet: what is drawn, what is printed, what is refused before anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gmml_aug import GroupMask, describe, patch_to_pixel
from gmml_aug.__main__ import main

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
SMALL = ("--image-size", "32", "--patch-size", "4")
CELL, GAP, LINE = 7 * 32, 10, 18  # pixels on the sheet: an image drawn 7 times as large, what is between, a line


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with three plain photos."""
    monkeypatch.chdir(tmp_path)
    for name, color in (("red.png", "red"), ("green.jpg", "lime"), ("blue.webp", "blue")):
        Image.new("RGB", (60, 44), color).save(tmp_path / name, lossless=True)
    return tmp_path


def sheet(path: str = "sheet.png") -> Any:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def cell(pixels: Any, row: int, column: int, rows: int = 3) -> Any:
    """Cut an image out of a sheet: (32, 32, 3), one of the 7 x 7 alike that show each of its pixels."""
    bottom = len(pixels) - (rows - 1 - row) * (CELL + LINE + GAP) - LINE - GAP
    left = GAP + column * (CELL + GAP)
    blocks = pixels[bottom - CELL : bottom, left : left + CELL].reshape(32, 7, 32, 7, 3).swapaxes(1, 2)
    assert (blocks == blocks[:, :, :1, :1]).all()
    return blocks[:, :, 0, 0]


def plan_mask(photos: int, **arguments: Any) -> torch.Tensor:
    corrupt = GroupMask(**{"patch_size": 4, "seed": 0, **arguments})
    return corrupt.sample((photos, 3, 32, 32), index=torch.arange(photos)).mask


def test_the_table_shows_the_figures_of_the_masks(capsys: pytest.CaptureFixture[str]) -> None:
    main(["preview", "red.png", "green.jpg", "blue.webp", *SMALL, "--fill", "noise", "alien"])
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "photo"
    assert last.endswith("Drew sheet.png.")
    figures = describe(plan_mask(3))
    for i, (row, name) in enumerate(zip(rows, ("red.png", "green.jpg", "blue.webp"), strict=True)):
        photo, share, percent, groups, sizes = row.split(maxsplit=4)
        assert (photo, percent) == (name, "%")
        assert float(share) == pytest.approx(float(figures.share[i]) * 100, abs=0.051)
        assert int(groups) == figures.components[i]
        read = []
        for part in sizes.split(", "):
            *times, size = part.split(" times ")
            read += [int(size)] * int(times[0] if times else 1)
        assert read == figures.sizes[i][: figures.components[i]].tolist()


def test_the_sheet_has_a_row_for_each_photo_and_a_column_for_each_fill() -> None:
    main(["preview", "red.png", "green.jpg", "blue.webp", *SMALL, "--fill", "zeros", "noise", "alien", "shuffle"])
    pixels = sheet()
    assert pixels.shape[1] == 5 * (CELL + GAP) + GAP
    assert pixels.shape[0] == pytest.approx(3 * (CELL + LINE + GAP) + 3 * LINE + 2 * GAP, abs=2 * LINE)
    for below in [len(pixels) - GAP - row * (CELL + LINE + GAP) for row in range(4)]:  # captions, and the headings
        for left in range(GAP, pixels.shape[1], CELL + GAP):
            assert (pixels[below - LINE : below, left : left + CELL].max(-1) < 100).any()
    masks = patch_to_pixel(plan_mask(3), 4)[:, 0].numpy()
    colors = np.eye(3, dtype=int) * 255
    for row, (mask, color) in enumerate(zip(masks, colors, strict=True)):
        photo, zeros, noise, alien, shuffle = (cell(pixels, row, column) for column in range(5))
        assert np.abs(photo - color).max() <= 2  # JPEG's
        for filled in (zeros, noise, alien, shuffle):
            assert np.array_equal(filled[~mask], photo[~mask])
        assert np.abs(zeros[mask] - (124, 116, 104)).max() <= 1  # ImageNet's mean, which normalised zeros are
        other = alien[mask]
        assert (other == other[0]).all()
        assert any(np.abs(other[0] - colors[donor]).max() <= 2 for donor in range(3) if donor != row)
        assert np.array_equal(shuffle, photo)  # of one color
        # Normal noise in normalised images: about ImageNet's mean and deviation, but for what is clamped at the ends.
        assert noise[mask].mean(0) == pytest.approx([124, 116, 104], abs=12)
        assert noise[mask].std(0) == pytest.approx([58, 57, 57], abs=8)


def test_a_seed_repeats_the_sheet_and_another_does_not() -> None:
    common = ["preview", "red.png", "blue.webp", *SMALL]
    for name, seed in (("a.png", "3"), ("b.png", "3"), ("c.png", "4")):
        main([*common, "--seed", seed, "-o", name])
    main([*common, "-o", "d.png"])
    main([*common, "-o", "e.png"])
    a, b, c, d, e = (Path(f"{name}.png").read_bytes() for name in "abcde")
    assert a == b
    assert d == e
    assert len({a, c, d}) == 3


def test_arguments_reach_group_mask(capsys: pytest.CaptureFixture[str]) -> None:
    words = "red.png --image-size 32 --patch-size 4 8 --ratio 0.5 --group-size 1 2 --placement inside --fill zeros"
    main(["preview", *words.split(), "--seed", "5"])
    settings: dict[str, Any] = {"patch_size": (4, 8), "group_size": (1, 2), "placement": "inside", "seed": 5}
    mask = patch_to_pixel(plan_mask(1, ratio=0.5, **settings), (4, 8))[0, 0].numpy()
    shown = cell(sheet(), 0, 1, rows=1)
    assert np.array_equal(np.abs(shown - (255, 0, 0)).max(-1) > 2, mask)
    assert " 50.0 % " in capsys.readouterr().out


@pytest.mark.parametrize(("name", "kind"), [("sheet.jpg", "JPEG"), ("sheet", "PNG")])
def test_the_output_names_its_format(name: str, kind: str) -> None:
    main(["preview", "red.png", *SMALL, "-o", name])
    with Image.open(name) as image:
        assert image.format == kind


def test_photos_are_turned_upright_cropped_to_the_centre_and_made_rgb() -> None:
    wide = Image.new("RGB", (80, 40), "red")  # red at both ends, which the crop takes away
    wide.paste("white", (20, 0, 40, 40))
    wide.paste("black", (40, 0, 60, 40))
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: what is left belongs on top
    wide.save("turned.png", exif=exif)
    Image.new("L", (40, 50), 100).save("grey.png")
    Image.new("RGBA", (40, 50), (10, 200, 30, 255)).save("alpha.png")
    Image.new("RGB", (40, 50), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE).save("palette.png")
    main(["preview", "turned.png", "grey.png", "alpha.png", "palette.png", *SMALL])
    turned, grey, alpha, palette = (cell(sheet(), row, 0, rows=4) for row in range(4))
    assert (turned[:14] > 240).all()
    assert (turned[18:] < 15).all()
    assert (grey == 100).all()
    assert (alpha == (10, 200, 30)).all()
    assert (palette == (10, 200, 30)).all()


def test_one_photo_of_the_usual_size_keeps_its_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    name = f"{'long' * 30}.png"
    Image.fromarray(noise).save(name)
    main(["preview", name])
    pixels = sheet()
    bottom = len(pixels) - LINE - GAP
    assert np.array_equal(pixels[bottom - 224 : bottom, GAP : GAP + 224], noise)
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith("longlong")
    assert "…" in row
    assert "long.png" in row
    assert len(row) < 120


@pytest.mark.slow
def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "gmml_aug"]
    words = ["preview", "red.png", "blue.webp", *SMALL, "--fill", "noise", "alien", "-o", "out.png"]
    done = subprocess.run(command + words, capture_output=True, text=True, check=True)
    assert "red.png" in done.stdout
    assert done.stderr == ""
    assert sheet("out.png").shape[1] == 3 * (CELL + GAP) + GAP


def test_without_a_command_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert "preview" in capsys.readouterr().out
    for words in (["--help"], ["preview", "--help"]):
        with pytest.raises(SystemExit) as leaving:
            main(words)
        assert leaving.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--patch-size", "--ratio", "--fill", "--output"))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line with which ``preview`` ends; nothing may have been drawn or printed."""
    before = sorted(Path().rglob("*")), Path("red.png").read_bytes()
    with pytest.raises(SystemExit) as leaving:
        main(["preview", *words])
    assert leaving.value.code == 2
    assert (sorted(Path().rglob("*")), Path("red.png").read_bytes()) == before
    out, err = capsys.readouterr()
    usage, error = err.splitlines()
    assert out == ""
    assert usage == "usage: python -m gmml_aug preview PHOTO [PHOTO ...] [options]"
    return error


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("", "required: PHOTO"),
        ("red.png --fill noise alien", "--fill alien takes its patches from another photo; give two photos or more"),
        ("red.png nowhere.png", "cannot read the photo nowhere.png: No such file"),
        (".", "cannot read the photo .: "),
        ("text.png", "cannot read the photo text.png: cannot identify image file"),
        ("cut.png", "cannot read the photo cut.png: "),
        ("cut.jpg", "cannot read the photo cut.jpg: image file is truncated"),
        ("deep.png", "more than 8 bits a channel"),
        ("red.png -o nowhere/sheet.png", "there is no folder nowhere; make it first"),
        ("red.png -o red.png", "--output red.png is one of the photos"),
        ("red.png -o sheet.xyz", "'xyz' is not supported"),
        ("red.png -o .", "."),
        ("red.png --fill nois", "choose from"),
        ("red.png --fill noise noise", "names one fill twice"),
        ("red.png --image-size 100", "height is 100 pixels, which is not a multiple of the patch's 16"),
        ("red.png --image-size 0", "height is 0 pixels"),
        ("red.png --patch-size 4 8 2", "pair (height, width)"),
        ("red.png --patch-size 0", "at least 1 pixel"),
        ("red.png --ratio 1.5", "ratio is in [0, 1]; got 1.5"),
        ("red.png --ratio 0.7 0.4", "is reversed"),
        ("red.png --group-size 3 2", "1 <= low <= high"),
        ("red.png --group-size 3 20", "asks for groups of up to 20"),
        ("red.png --placement outside", "choose from"),
        ("red.png --seed x", "invalid int value"),
    ],
)
def test_wrong_arguments_end_in_one_line(words: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.png").write_text("not a photo")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("cut.png", "cut.jpg"):
        noise.save(name)
        Path(name).write_bytes(Path(name).read_bytes()[:-1000])
    Image.fromarray(np.full((40, 40), 1000, dtype=np.uint16)).save("deep.png")
    assert error in refused(capsys, *words.split())


@pytest.mark.parametrize("library", ["matplotlib", "PIL"])
def test_what_is_not_installed_is_named(
    library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library or name == "gmml_aug.preview"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    error = refused(capsys, "red.png")
    assert f"preview needs {library}" in error
    assert "pip install matplotlib" in error


@pytest.mark.slow
def test_a_file_name_that_is_not_utf8_is_shown_with_a_mark() -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("RGB", (60, 44), "red").save(name)
    except OSError:
        pytest.skip("this file system refuses such names")
    command = [sys.executable, "-m", "gmml_aug", "preview", name, *SMALL]
    out = subprocess.run(
        command, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"}
    ).stdout
    assert "caf\N{REPLACEMENT CHARACTER}.png" in out.decode()
