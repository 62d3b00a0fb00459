"""Where the examples' images come from, and what becomes of them: real files, real shards, real data sets."""

from __future__ import annotations

import io
import multiprocessing
import shutil
import struct
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

Image = pytest.importorskip("PIL.Image")
for library in ("accelerate", "kornia", "sklearn", "torchvision", "tqdm"):
    pytest.importorskip(library)

CPU = torch.device("cpu")
EXAMPLES = Path(__file__).parent.parent / "examples"
SIDE = 37  # what images are stored at for 32 pixels

pytestmark = pytest.mark.filterwarnings("ignore:This process", "ignore:This DataLoader")  # of forks, of many workers


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what reads images, in one namespace."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return reading()


def reading() -> Any:
    from reference.data import load, photos, sources, together
    from reference.data.folder import Files
    from reference.draws import order
    from reference.views import Views

    return SimpleNamespace(
        load=load, order=order, Views=Views, Files=Files, Memory=sources.Memory, photographs=together.photographs,
        read=photos.read, square=photos.square,
    )  # fmt: skip


def photo(seed: int, size: tuple[int, int] = (60, 44), mode: str = "RGB") -> Any:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size).convert(mode)


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    photo(seed).save(file, "JPEG")
    return file.getvalue()


def write(folder: Path, number: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        photo(first + i).save(folder / f"{i:02}.png")


def images_of(source: Any, numbers: list[int]) -> Tensor:
    images: Tensor = next(source.batches([torch.tensor(numbers)])).images
    return images


# Views


@pytest.mark.parametrize("total", [2, 4, 7, 33])
@pytest.mark.parametrize("kind", ["digits", "photographs"])
def test_two_processes_see_the_crops_that_one_sees(data: Any, kind: str, total: int) -> None:
    torch.manual_seed(1)
    if kind == "digits":
        loaded = data.load("digits", 8, CPU)
        raw = images_of(loaded.train, list(range(total)))
    else:
        raw = torch.randint(256, (total, 3, SIDE, SIDE), dtype=torch.uint8)
        loaded = data.photographs("p", [data.Memory(raw, None)], [], 32)
    views, half = data.Views(loaded), total // 2

    def augmented(rows: slice) -> Tensor:
        torch.manual_seed(5)
        images: Tensor = views.augmented(raw[rows], rows, total)
        return images

    whole = augmented(slice(None))
    assert torch.equal(whole, torch.cat([augmented(slice(0, half)), augmented(slice(half, total))]))
    assert not torch.equal(whole, views.plain(raw))
    torch.manual_seed(5)
    assert torch.equal(whole, views.augmented(raw))
    torch.manual_seed(6)
    assert not torch.equal(whole, views.augmented(raw))


def test_shown_undoes_what_plain_did(data: Any) -> None:
    raw = torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    views = data.Views(data.photographs("p", [data.Memory(raw, None)], [], 32))
    shown = views.shown(views.plain(raw))
    assert torch.allclose(shown, raw[..., 2:34, 2:34] / 255, atol=1e-6)


# Reading


def test_what_is_read_is_the_upright_middle_in_rgb(data: Any, tmp_path: Path) -> None:
    picture = Image.new("RGB", (80, 40), "blue")
    picture.paste("red", (20, 0, 60, 20))  # the upper half of the middle
    exif = Image.Exif()
    exif[0x0112] = 6  # is to be turned by 90 degrees clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    middle = data.read(tmp_path / "turned.jpg", 40).float()
    assert middle.shape == (3, 40, 40)
    assert torch.allclose(middle[:, 3:17].mean((1, 2)), torch.tensor([255.0, 0, 0]), atol=12)
    assert torch.allclose(middle[:, 23:37].mean((1, 2)), torch.tensor([0, 0, 255.0]), atol=12)


@pytest.mark.parametrize(("mode", "name"), [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "bmp")])
def test_all_modes_become_rgb(data: Any, tmp_path: Path, mode: str, name: str) -> None:
    photo(0, mode=mode).save(tmp_path / f"a.{name}")
    assert data.read(tmp_path / f"a.{name}", SIDE).shape == (3, SIDE, SIDE)


def test_16_bits_are_scaled_and_not_clipped(data: Any, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    grey = data.read(tmp_path / "a.png", 64)[0]
    assert abs(grey.float().mean() - 127.5) < 1
    assert (grey.min(), grey.max()) == (0, 255)


def test_a_tiff_of_unknown_range_is_named_and_not_black_or_clipped(data: Any, tmp_path: Path) -> None:
    Image.fromarray(np.ones((40, 40), np.float32)).save(tmp_path / "a.tif")
    assert "floating-point" in str(data.read(tmp_path / "a.tif", SIDE))
    for value in (-1, 70_000):
        Image.fromarray(np.full((40, 40), value, np.int32)).save(tmp_path / "a.tif")
        assert "beyond 16 bits" in str(data.read(tmp_path / "a.tif", SIDE))


def test_a_large_jpeg_decoded_small_is_the_same_picture(data: Any, tmp_path: Path) -> None:
    large = photo(0, (1600, 1200))
    large.save(tmp_path / "a.jpg", quality=95)
    assert (data.read(tmp_path / "a.jpg", SIDE).float() - data.square(large, SIDE).float()).abs().mean() < 3


# Folders


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_tree_with_two_parts(data: Any, tmp_path: Path, held_out: str) -> None:
    for part, number in (("train", 3), (held_out, 2)):
        for i, name in enumerate(("cat", "dog")):
            write(tmp_path / part / name, number, 10 * i)
    loaded = data.load(str(tmp_path), 32, CPU)
    assert (loaded.classes, loaded.channels, loaded.name) == (["cat", "dog"], 3, tmp_path.name)
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert loaded.test.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(images_of(loaded.train, [3 + 6])[0], data.read(tmp_path / "train/dog/00.png", SIDE))


def test_classes_alone_are_split_4_to_1(data: Any, tmp_path: Path) -> None:
    write(tmp_path / "cat", 10)
    write(tmp_path / "dog", 10, 10)
    loaded = data.load(str(tmp_path), 32, CPU)
    assert loaded.train.labels.bincount().tolist() == [8, 8]
    assert loaded.test.labels.bincount().tolist() == [2, 2]
    images = torch.cat([loaded.train.images, loaded.test.images])
    assert len({tuple(image.flatten().tolist()) for image in images}) == 20


def test_a_flat_folder_has_no_labels_and_hidden_names_are_passed_over(data: Any, tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / "._00.png").write_bytes(b"a resource fork")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    loaded = data.load(str(tmp_path), 32, CPU)
    assert (len(loaded.train), loaded.train.labels, loaded.test) == (3, None, None)


@pytest.mark.parametrize("labelled", [True, False])
def test_hidden_folders_and_links_that_lead_back_up_are_passed_over(data: Any, tmp_path: Path, labelled: bool) -> None:
    write(tmp_path / "photos/cat", 5)
    write(tmp_path / "elsewhere", 5, 5)
    write(tmp_path / "photos/.thumbs", 3, 10)
    write(tmp_path / "photos/cat/.thumbs", 3, 10)
    (tmp_path / "photos/dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/cat/up").symlink_to(tmp_path / "photos")
    loaded = data.load(str(tmp_path / "photos"), 32, CPU, labelled=labelled)
    images = len(loaded.train) + (len(loaded.test) if labelled else 0)
    assert (images, loaded.classes) == (10, ["cat", "dog"] if labelled else [])
    assert loaded.left_out["hidden folders"] == 2
    assert loaded.left_out["links to folders seen before"] == 1


def test_folders_beside_the_parts_are_counted_and_capitals_make_no_difference(data: Any, tmp_path: Path) -> None:
    for part in ("Train", "Test", "val", "new"):
        write(tmp_path / part / "cat", 2)
        write(tmp_path / part / "dog", 2, 2)
    loaded = data.load(str(tmp_path), 32, CPU)
    assert (loaded.classes, len(loaded.train), len(loaded.test)) == (["cat", "dog"], 4, 4)
    assert loaded.left_out["folders beside train/ and test/"] == 2


def test_small_images_keep_their_pixels_and_mixed_ones_share_a_side(data: Any, tmp_path: Path) -> None:
    photo(0, (32, 32)).save(tmp_path / "0.png")
    assert images_of(data.load(str(tmp_path), 32, CPU).train, [0]).shape == (1, 3, 32, 32)
    assert torch.equal(images_of(data.load(str(tmp_path), 32, CPU).train, [0])[0], data.read(tmp_path / "0.png", 99))
    photo(1, (35, 50)).save(tmp_path / "1.png")
    images = images_of(data.load(str(tmp_path), 32, CPU).train, [0, 1])
    assert images.shape == (2, 3, 35, 35)
    assert torch.equal(images[1], data.read(tmp_path / "1.png", 99))


@pytest.mark.parametrize("larger", ["train/cat/00.png", "test/dog/01.png"])
def test_one_larger_image_changes_all_parts_alike(data: Any, tmp_path: Path, larger: str) -> None:
    for part in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for j in range(3):
                photo(3 * i + j, (32, 32)).save(folder / f"{j:02}.png")  # the same in both parts
    photo(9, (64, 64)).save(tmp_path / larger)
    loaded = data.load(str(tmp_path), 32, CPU)
    train, test = (data.Views(loaded).plain(images_of(part, [2])) for part in (loaded.train, loaded.test))
    assert torch.equal(train, test)


def test_both_parts_are_held_in_memory_or_none(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, number in (("train", 8), ("test", 2)):
        write(tmp_path / part / "cat", number)
    for images, kind in ((10, data.Memory), (9, data.Files)):
        monkeypatch.setattr("reference.data.folder.MEMORY", images * 3 * SIDE**2)
        loaded = data.load(str(tmp_path), 32, CPU)
        assert isinstance(loaded.train, kind)
        assert isinstance(loaded.test, kind)


def test_the_fingerprint_is_of_the_images_and_not_of_their_place(data: Any, tmp_path: Path) -> None:
    def fingerprint(name: str) -> str:
        found: str = data.load(str(tmp_path / name), 32, CPU).fingerprint
        return found

    for i, name in enumerate(("cat", "dog")):
        write(tmp_path / "a" / name, 10, 10 * i)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    before = fingerprint("a")
    assert fingerprint("b") == before
    photo(99, (61, 44)).save(tmp_path / "a/cat/03.png")
    assert fingerprint("a") != before
    (tmp_path / "b/cat").rename(tmp_path / "b/cow")
    (tmp_path / "b/dog").rename(tmp_path / "b/cat")
    (tmp_path / "b/cow").rename(tmp_path / "b/dog")
    assert fingerprint("b") != before
    assert data.load("digits", 8, CPU).fingerprint != before


def test_a_corrupt_image_is_named_counted_and_left_out(
    data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "train/cat", 3)
    write(tmp_path / "train/dog", 3, 3)
    write(tmp_path / "test/cat", 1)
    write(tmp_path / "test/dog", 1)
    (tmp_path / "train/cat/01.png").write_bytes(b"junk")
    cut = tmp_path / "train/dog/00.png"
    cut.write_bytes(cut.read_bytes()[:100])
    loaded = data.load(str(tmp_path), 32, CPU)
    assert loaded.train.labels.tolist() == [0, 0, 1, 1]
    assert len(loaded.train) == 4
    assert torch.equal(images_of(loaded.train, [2])[0], data.read(tmp_path / "train/dog/01.png", SIDE))
    printed = capsys.readouterr().err
    assert "cat/01.png" in printed
    assert "dog/00.png" in printed
    assert "2 so far" in printed


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ([], "has no images; left out: none"),
        (["cat/0.png", "cat/1.png", "dog/"], "has no image of dog; left out: none"),
        (["0.png", "cat/0.png"], "both images .* and folders"),
        (["train/cat/0.png"], "it needs train/ and test/"),
        (["train/0.png", "test/0.png"], "train has no folder of a class"),
        (["train/0.png", "train/cat/0.png", "test/cat/0.png"], "both images .* and folders"),
        (["train/cat/0.png", "test/dog/0.png"], "but test/ has"),
        (["cat/0.png", "cat/1.png", "dog/0.png"], "has one image of dog; each class needs two"),
        (
            ["cat/junk0.png", "cat/junk1.png", *(f"dog/{i}.png" for i in range(9))],
            "none of the training images of cat",
        ),
        (["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"], "cannot be split 4 to 1"),
        (["junk.png"], "none of the images can be read"),
    ],
)
def test_folders_that_are_not_understood(data: Any, tmp_path: Path, files: list[str], error: str) -> None:
    for file in files:
        path = tmp_path / file
        (path if file.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if "junk" in file:
            path.write_bytes(b"junk")
        elif not file.endswith("/"):
            photo(0).save(path)
    with pytest.raises(SystemExit, match=error):
        data.load(str(tmp_path), 32, CPU)


@pytest.mark.parametrize(
    ("name", "samples", "error"),
    [
        ("/nowhere", None, "no folder '/nowhere'"),
        ("torchvision:ResNet", None, "not a data set of torchvision that takes download="),
        ("torchvision:FakeData", None, "not a data set of torchvision that takes download="),
        ("digits", 100, "--samples-per-epoch 100 is for shards"),
    ],
)
def test_names_that_are_not_understood(data: Any, name: str, samples: int | None, error: str) -> None:
    with pytest.raises(SystemExit, match=error):
        data.load(name, 8, CPU, samples)


# Files that do not fit into memory


def test_workers_give_what_memory_gives_and_leave_torchs_numbers_alone(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 11)
    held = data.load(str(tmp_path), 32, CPU).train
    monkeypatch.setattr("reference.data.folder.MEMORY", 1)
    read = data.load(str(tmp_path), 32, CPU).train
    assert isinstance(read, data.Files)
    state = torch.get_rng_state()
    batches = [list(source.batches(data.order(11, 4, 0, 1, 7))) for source in (held, read)]
    assert torch.equal(state, torch.get_rng_state())
    assert len(batches[0]) == len(batches[1]) == 6
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.number, b.number)


def test_the_next_of_the_class_stands_in_for_a_corrupt_file(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        write(tmp_path / part / "cat", 3)
        write(tmp_path / part / "dog", 3, 3)
    (tmp_path / "train/cat/02.png").write_bytes(b"junk")
    monkeypatch.setattr("reference.data.folder.MEMORY", 1)
    train = data.load(str(tmp_path), 32, CPU).train
    batches = list(train.batches([torch.tensor([2, 3, 6 + 2]), torch.tensor([2])] * 2))
    assert [batch.number.tolist() for batch in batches] == [[0, 3, 6], [0]] * 2
    cat = data.read(tmp_path / "train/cat/00.png", SIDE)
    assert torch.equal(batches[0].images[0], cat)
    assert torch.equal(batches[3].images[0], cat)
    printed = capsys.readouterr().err
    assert printed.count("skipped") == printed.count("1 so far") == printed.count("cat/02.png, which") == 1


@pytest.mark.parametrize("stop", ["close", "forget"])
def test_a_consumer_that_stops_early_leaves_no_worker(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    write(tmp_path, 4)
    monkeypatch.setattr("reference.data.folder.MEMORY", 1)
    before = set(multiprocessing.active_children())
    batches = data.load(str(tmp_path), 32, CPU).train.batches(data.order(4, 2, 0, 0, 100))
    next(batches)
    assert set(multiprocessing.active_children()) - before
    if stop == "close":
        batches.close()
    del batches
    assert not set(multiprocessing.active_children()) - before


def test_a_network_trains_beside_the_workers(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's threads are at work when the workers are forked: what they do must not wait for these."""
    write(tmp_path, 8)
    monkeypatch.setattr("reference.data.folder.MEMORY", 1)
    loaded, model = data.load(str(tmp_path), 32, CPU), nn.Conv2d(3, 16, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(2):
            model(torch.randn(64, 3, 64, 64)).mean().backward()
            batches = list(loaded.train.batches(data.order(8, 4, 0, 0, 4)))
            assert len(batches) == 4
            model(data.Views(loaded).augmented(batches[0].images)).mean().backward()
    finally:
        torch.set_num_threads(threads)


# Data sets of torchvision


def write_idx(folder: Path, name: str, array: np.ndarray[Any, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    (folder / name).write_bytes(header + array.tobytes())


def test_a_set_with_train(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    pictures = {"train": generator.integers(0, 256, (20, 28, 28), dtype=np.uint8)}
    pictures["t10k"] = generator.integers(0, 256, (10, 28, 28), dtype=np.uint8)
    raw = tmp_path / "data/FashionMNIST/raw"
    for part, array in pictures.items():
        write_idx(raw, f"{part}-images-idx3-ubyte", array)
        write_idx(raw, f"{part}-labels-idx1-ubyte", np.arange(len(array), dtype=np.uint8) % 10)
    loaded = data.load("torchvision:FashionMNIST", 28, CPU)
    assert loaded.classes[0] == "T-shirt/top"
    assert loaded.train.labels.tolist() == [*range(10)] * 2
    assert loaded.test.labels.tolist() == [*range(10)]
    expected = torch.from_numpy(pictures["t10k"])[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(loaded.test.images, expected)


def test_a_set_with_split(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data/food-101"
    (root / "meta").mkdir(parents=True)
    for i, name in enumerate(("cake", "soup")):
        write(root / "images" / name, 6, 10 * i)
        for file in (root / "images" / name).iterdir():
            file.rename(file.with_suffix(".jpg"))
    parts = {"train": range(4), "test": range(4, 6)}
    for part, numbers in parts.items():
        listed = {name: [f"{name}/{i:02}" for i in numbers] for name in ("cake", "soup")}
        (root / "meta" / f"{part}.json").write_text(str(listed).replace("'", '"'))
    (root / "images/cake/01.jpg").write_bytes(b"junk")
    loaded = data.load("torchvision:Food101", 32, CPU)
    assert loaded.classes == ["cake", "soup"]
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert loaded.test.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(loaded.test.images[2], data.read(root / "images/soup/04.jpg", SIDE))
    assert "skipped Food101[1]" in capsys.readouterr().err


def test_a_set_without_parts_is_split(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("Forest", "River")):
        write(tmp_path / "data/eurosat/2750" / name, 5, 10 * i)
    loaded = data.load("torchvision:EuroSAT", 32, CPU)
    assert loaded.classes == ["Forest", "River"]
    assert loaded.train.labels.bincount().tolist() == [4, 4]
    assert loaded.test.labels.bincount().tolist() == [1, 1]


def test_a_failed_download_ends_in_an_error(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").write_text("a file where the folder would be")
    with pytest.raises(SystemExit, match="torchvision:CIFAR10 is not in data/ and cannot be downloaded"):
        data.load("torchvision:CIFAR10", 32, CPU)


# Shards


def write_shards(folder: Path, number: int, corrupt: bool = False) -> str:
    """Write shards of five images, the red channel of each of which says which it is, and return their name."""
    wds = pytest.importorskip("webdataset")
    for shard in range(number):
        with wds.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for i in range(5):
                file = io.BytesIO()
                Image.new("RGB", (50, 40), (10 * (5 * shard + i), 0, 0)).save(file, "PNG")
                image = b"junk" if corrupt and (shard, i) == (1, 2) else file.getvalue()
                tar.write({"__key__": f"a/{shard}-{i}", "png": image, "cls": i})
    return f"{folder}/{{0..{number - 1}}}.tar"


def which(images: Tensor) -> list[int]:
    """Return which of the images of ``write_shards`` these are."""
    numbers: list[int] = (images[:, 0, 0, 0] // 10).tolist()
    return numbers


def test_a_stream_gives_the_sizes_that_are_asked_for(data: Any, tmp_path: Path) -> None:
    loaded = data.load(write_shards(tmp_path, 4), 32, CPU, 1000)
    assert (len(loaded.train), loaded.train.labels, loaded.test) == (1000, None, None)
    sizes = (8, 8, 3, 512)
    numbers = [torch.arange(n) + n for n in sizes]
    batches = list(loaded.train.batches(numbers))
    assert [batch.images.shape for batch in batches] == [(n, 3, SIDE, SIDE) for n in sizes]
    assert all(torch.equal(batch.number, number) for batch, number in zip(batches, numbers, strict=True))
    seen = which(torch.cat([batch.images for batch in batches]))
    assert set(seen) == set(range(20))  # of over 500 draws one image is missing once in 10^10 times
    assert seen != sorted(seen)


def test_a_stream_hangs_on_what_is_asked_for_first(data: Any, tmp_path: Path) -> None:
    source = data.load(write_shards(tmp_path, 4), 32, CPU, 1000).train

    def seen(seed: int, step: int) -> list[int]:
        return which(torch.cat([b.images for b in source.batches(data.order(1000, 8, seed, step, step + 6))]))

    runs = [seen(0, 0), seen(1, 0), seen(0, 1)]
    assert seen(0, 0) == runs[0]
    assert len({tuple(run) for run in runs}) == 3


def test_every_worker_has_a_stream_of_its_own(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reference.data.sources.cores", lambda: 2)
    source = data.load(write_shards(tmp_path, 4), 32, CPU, 1000).train
    batches = [which(batch.images) for batch in source.batches(data.order(1000, 16, 0, 0, 6))]
    assert len({tuple(batch) for batch in batches}) == 6


def test_a_broken_member_and_a_cut_shard_are_named_and_skipped(
    data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_shards(tmp_path, 4, corrupt=True)
    cut = tmp_path / "2.tar"
    cut.write_bytes(cut.read_bytes()[: 512 * 9 + 100])
    source = data.load(name, 32, CPU, 1000).train
    seen = which(torch.cat([batch.images for batch in source.batches(data.order(1000, 32, 0, 0, 8))]))
    assert len(seen) == 256
    assert set(seen) & set(range(5, 10)) == {5, 6, 8, 9}
    assert set(seen) >= {*range(5), *range(15, 20)}
    printed = capsys.readouterr().err
    assert printed.count(f"skipped {tmp_path}/1.tar: a/1-2.png") == 1
    assert printed.count(f"skipped {tmp_path}/2.tar") == 1
    assert printed.count("skipped") == 2
    assert "2 so far" in printed


def test_a_stream_from_a_command(data: Any, tmp_path: Path) -> None:
    name = write_shards(tmp_path, 2)
    source = data.load(f"pipe:cat {name}", 32, CPU, 100).train
    assert set(which(images_of(source, list(range(64))))) == set(range(10))


def test_shards_that_cannot_be_used(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_shards(tmp_path, 2)
    with tarfile.open(tmp_path / "text.tar", "w") as tar:
        tar.add(__file__, "a.txt")
    for of, samples, error in (
        (name, None, "give --samples-per-epoch"),
        (name, 0, "give --samples-per-epoch"),
        (f"{tmp_path}/{{0..3}}.tar", 10, "2 of 4 shards do not exist, such as .*/2.tar"),
        (str(tmp_path / "text.tar"), 10, "there are no images in"),
        ("pipe:false", 10, "there are no images in pipe:false"),
    ):
        with pytest.raises(SystemExit, match=error):
            data.load(of, 32, CPU, samples)
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(SystemExit, match=r"pip install -e '.\[webdataset\]'"):
        data.load(name, 32, CPU, 10)


def rank_of_two(rank: int, name: str, folder: str) -> None:
    sys.path.insert(0, str(EXAMPLES))
    data = reading()
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    source = data.load(name, 32, CPU, 1000).train
    numbers: Iterator[Tensor] = (number[4 * rank : 4 * rank + 4] for number in data.order(1000, 8, 0, 0, 6))
    batches = list(source.batches(numbers))
    gathered = [torch.zeros(4, dtype=torch.int64) for _ in range(2)]
    torch.distributed.all_gather(gathered, batches[-1].number)
    if rank == 0:
        assert torch.equal(torch.cat(gathered), next(data.order(1000, 8, 0, 5, 6)))
    torch.save([batch.images for batch in batches], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this platform cannot fork")
def test_two_processes_have_streams_of_their_own(tmp_path: Path) -> None:
    name = write_shards(tmp_path, 1)  # fewer than there are processes
    spawned: Any = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
    spawned(rank_of_two, (name, str(tmp_path)), nprocs=2, daemon=False, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert all(images.shape == (4, 3, SIDE, SIDE) for rank in ranks for images in rank)
    assert which(torch.cat(ranks[0])) != which(torch.cat(ranks[1]))
