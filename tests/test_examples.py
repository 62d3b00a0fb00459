"""The reference system from its command line: the main path at a few steps, the network, the ablation."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("timm")
pytest.importorskip("accelerate")
pytest.importorskip("kornia")
SMALL = ("--dim", 32, "--depth", 2, "--heads", 2, "--finetune-steps", 3, "--draws", 2)


@pytest.fixture
def pretrain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return the example's main function, which takes the command line's words."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    main: Callable[[list[str]], None] = importlib.import_module("pretrain").main
    return lambda *words: main([str(word) for word in words])


def test_digits_end_in_a_table_and_a_run_folder(
    tmp_path: Path, pretrain: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    pretrain("--output", run, "--epochs", 1, *SMALL)
    printed = capsys.readouterr().out
    for words in ("360 held-out images", "from scratch", "pretrained", "points", "learning rates, given"):
        assert words in printed
    assert sorted(path.name for path in run.iterdir()) == [
        "autoencoder.safetensors", "checkpoint.safetensors", "config.json", "encoder.json", "encoder.safetensors",
        "evaluation.json", "evaluation.jsonl", "evaluation.png", "metrics.jsonl", "plan.txt", "reconstructions",
        "report.html",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 22]
    assert [path.name for path in (run / "reconstructions").iterdir()] == ["step-000022.png"]

    # The encoder's weights load in plain timm, no key renamed.
    import timm
    from safetensors.torch import load_file
    from timm.data.config import resolve_model_data_config

    vit: torch.nn.Module = timm.create_model(**json.loads((run / "encoder.json").read_text()))
    vit.load_state_dict(load_file(run / "encoder.safetensors"))
    tokens = vit.forward_features(torch.zeros(1, 1, 8, 8))  # type: ignore[operator]
    assert tokens.shape == (1, 17, 32)  # 16 patches and a class token
    normalisation = resolve_model_data_config(vit)  # type: ignore[no-untyped-call]
    data = importlib.import_module("reference.data").load("digits", 8, torch.device("cpu"))
    assert list(normalisation["input_size"]) == [1, 8, 8]
    assert (list(normalisation["mean"]), list(normalisation["std"])) == (data.mean, data.std)


def test_a_model_of_timm_by_name(tmp_path: Path, pretrain: Callable[..., None]) -> None:
    import timm
    from PIL import Image
    from safetensors.torch import load_file

    (tmp_path / "data").mkdir()
    for i in range(4):
        Image.new("RGB", (40 + i, 36), "red").save(tmp_path / f"data/{i}.png")
    pretrain(
        "--data", tmp_path / "data", "--output", tmp_path / "run", "--model", "test_vit", "--image-size", 160,
        "--patch-size", 16, "--batch-size", 4, "--epochs", 1,
    )  # fmt: skip
    vit = timm.create_model("test_vit", num_classes=0)
    vit.load_state_dict(load_file(tmp_path / "run/encoder.safetensors"))


@pytest.mark.parametrize("parts", [("train", "test"), (".",)])
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
    words = ("--epochs", 2, "--batch-size", 8, "--labels", 25, *SMALL)
    pretrain("--data", tmp_path / "data", "--output", tmp_path / "run", *words)
    assert "8 held-out images of data, 2 classes" in capsys.readouterr().out


def test_two_runs_of_a_process_may_differ_in_precision(tmp_path: Path, pretrain: Callable[..., None]) -> None:
    for precision in ("no", "bf16"):  # as ablate.py's may, where each run takes what is faster
        run = tmp_path / precision
        pretrain("--output", run, "--epochs", 1, "--draws", 0, "--precision", precision, *SMALL)
        assert json.loads((run / "config.json").read_text())["precision"] == precision


def test_help_lists_every_option(pretrain: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain("--help")
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--data", "--epochs", "--base-lr", "--rates", "--group-size"))


def test_help_and_errors_need_no_torch() -> None:
    examples = Path(__file__).parent.parent / "examples"
    for script in ("pretrain", "evaluate", "ablate", "embed", "finetune", "visualise"):
        code = (
            "import runpy, sys\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
        )
        for word, status in (("--help", 0), ("--no-such-option", 2)):
            words = [str(examples / f"{script}.py"), word]
            done = subprocess.run(
                [sys.executable, "-c", f"import sys; sys.argv = {words!r}\n{code}"],
                env={**os.environ, "PYTHONPATH": str(examples)}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert done.stdout.endswith(f"{status} False\n")
            assert len(done.stderr.splitlines()) <= 2


def test_the_model_averages_the_blocks_of_the_paper(pretrain: Callable[..., None]) -> None:
    from reference.model import Autoencoder

    options = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 12, "num_heads": 2, "num_classes": 0}
    model = Autoencoder("vit_tiny_patch16_224", options).eval()
    assert model.blocks == [6, 8, 10, 12]
    outputs: list[Tensor] = []
    for block in model.blocks:
        model.encoder.blocks[block - 1].register_forward_hook(lambda _module, _input, output: outputs.append(output))
    images = torch.randn(2, 3, 16, 16)
    features = model.features(images)
    assert torch.allclose(features, model.encoder.norm(torch.stack(outputs).mean(0))[:, 1:], atol=1e-6)
    assert model(images).shape == images.shape

    last = Autoencoder("vit_tiny_patch16_224", options, fuse="last").eval()
    last.encoder.load_state_dict(model.encoder.state_dict())
    assert torch.allclose(last.features(images), model.encoder.norm(outputs[3])[:, 1:], atol=1e-6)
    learned = Autoencoder("vit_tiny_patch16_224", options, blocks=[3, 9], fuse="learned").eval()
    assert learned.fusion is not None
    learned.encoder.load_state_dict(model.encoder.state_dict())
    with torch.no_grad():
        learned.fusion.copy_(torch.tensor([100.0, 0.0]))  # all of block 3
    assert torch.allclose(learned.features(images), model.encoder.norm(learned.outputs(images, [3])[0]), atol=1e-6)
    with pytest.raises(SystemExit, match="from 1 to 12"):
        Autoencoder("vit_tiny_patch16_224", options, blocks=[13])
    with pytest.raises(SystemExit, match="no VisionTransformer"):
        Autoencoder("resnet18", {})


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


def test_an_ablation_goes_on_where_it_was_stopped(
    tmp_path: Path,
    pretrain: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ablate = importlib.import_module("ablate")
    base = ("--", "--dim", 16, "--depth", 2, "--heads", 2, "--epochs", 1)

    def run(*words: object) -> str:
        ablate.main([str(word) for word in (tmp_path / "ablation", "--steps", 2, *words)])
        return capsys.readouterr().out

    for words, error in (
        ((), "2"),  # argparse's exit status
        (("--labels", 0, *base), "2"),
        (("--labels", 0.01, *base), "that many percent of the 142 images of 0 is none"),
        (("--seeds", 0, *base), "2"),
        (("--variants", "groups", "tokens", "groups", *base), "2"),
        ((*base, "--seed=7"), "2"),
        ((*base, "--epoch", 1), "2"),
        ((*base, "--data", tmp_path / "nowhere"), "there is no folder"),
    ):
        with pytest.raises(SystemExit, match=error):
            run(*words)
        assert not (tmp_path / "ablation").exists()
    even = (*base, "--patch-size", 1)  # so that SimMIM has more than four squares
    run("--variants", "groups", *even)
    before = (tmp_path / "ablation/groups-seed0/autoencoder.safetensors").stat().st_mtime_ns
    table = run("--variants", "groups", "tokens", "epochs-x2", "mae", "simmim", "scratch", *even)
    assert all(
        name in table for name in ("groups", "tokens", "epochs-x2", "scratch", "linear probe", "10 % fine-tuned")
    )
    assert (tmp_path / "ablation/groups-seed0/autoencoder.safetensors").stat().st_mtime_ns == before
    made = {name: json.loads((tmp_path / f"ablation/{name}-seed0/config.json").read_text()) for name in
            ("groups", "tokens", "epochs-x2")}  # fmt: skip
    assert made["tokens"]["group_size"] == [1, 1]
    assert (made["groups"]["epochs"], made["epochs-x2"]["epochs"]) == (1, 2)
    whole = json.loads((tmp_path / "ablation/ablation.json").read_text())
    assert whole["command"].startswith(
        f"python examples/ablate.py {tmp_path}/ablation --steps 2 --variants groups tokens"
    )
    rows = whole["rows"]
    name = "fine-tuned, 10 %"
    difference = rows["tokens"][name]["mean"] - rows["groups"][name]["mean"]
    assert rows["tokens"][f"{name}, difference"]["mean"] == pytest.approx(difference)
    judged = {(row["probe"]["mean"], row["neighbours"]["mean"], row[name]["mean"]) for row in rows.values()}
    assert len(judged) == len(rows)  # each by its own weights
    with pytest.raises(SystemExit, match=r"was made with labels \[10"):
        run("--labels", 20, *even)
    picture, parts = tmp_path / "gains.png", [tmp_path / "rival.json", tmp_path / "rest.json"]
    other = {name: {"each": [0.0]} for name in rows["scratch"] if "fine-tuned" in name}  # left out: of a later file
    parts[0].write_text(json.dumps({**whole, "rows": {row: rows[row] for row in rows if row != "mae"}}))
    parts[1].write_text(json.dumps({**whole, "rows": {"mae": rows["mae"], "scratch": other}}))
    gains = importlib.import_module("gains")
    monkeypatch.setattr("sys.argv", ["gains.py", *map(str, [picture, *parts])])
    gains.main()
    printed = capsys.readouterr().out
    for row in ("groups", "tokens", "mae"):
        gain = rows[row][name]["mean"] - rows["scratch"][name]["mean"]
        assert f"{row:<20}{10:>8} %: {gain:+.1f}" in printed
    monkeypatch.setattr("sys.argv", ["gains.py", *map(str, [picture, *parts, "--over", "mae"])])
    gains.main()
    gain = rows["tokens"][name]["mean"] - rows["mae"][name]["mean"]
    assert f"{'tokens':<20}{10:>8} %: {gain:+.1f}" in capsys.readouterr().out
    parts[1].write_text(json.dumps({**whole, "rows": {"mae": rows["mae"]}}))
    monkeypatch.setattr("sys.argv", ["gains.py", *map(str, [picture, parts[1]])])
    with pytest.raises(SystemExit, match=r"mae and scratch share no draw of 10 %"):
        gains.main()
    parts[1].write_text(json.dumps({**whole, "seeds": [7], "rows": {"mae": rows["mae"]}}))
    monkeypatch.setattr("sys.argv", ["gains.py", *map(str, [picture, *parts])])
    with pytest.raises(SystemExit, match=r"mae and scratch share no draw of 10 %"):
        gains.main()
    assert picture.stat().st_size


def test_an_ablation_searches_rates_with_its_first_seed_and_takes_more_seeds(
    tmp_path: Path, pretrain: Callable[..., None]
) -> None:
    ablate = importlib.import_module("ablate")
    words = (
        tmp_path / "ablation",
        "--steps",
        2,
        "--draws",
        2,
        "--rates",
        1e-3,
        1e-2,
        "--search-draws",
        3,
        "--variants",
        "groups",
        "mae-equal-time",
    )
    base = ("--", "--dim", 16, "--depth", 2, "--heads", 2, "--epochs", 2, "--patch-size", 1)
    found = {}
    for seeds in (("--seeds", 2), ("--first-seed", 2)):
        ablate.main([str(word) for word in (*words, *seeds, *base)])
        found[seeds] = json.loads((tmp_path / "ablation/ablation.json").read_text())
    for seed, searches in ((0, 6), (1, 0), (2, 6)):
        for variant, epochs in (("groups", 2), ("mae-equal-time", 4)):
            run = tmp_path / f"ablation/{variant}-seed{seed}"
            assert json.loads((run / "config.json").read_text())["epochs"] == epochs
            purposes = [json.loads(line)["purpose"] for line in (run / "evaluation.jsonl").read_text().splitlines()]
            assert purposes.count("search") == searches
            assert len(purposes) == searches + 4  # probe, neighbours, two draws
    assert [each["seeds"] for each in found.values()] == [[0, 1], [2]]
    for each, count in zip(found.values(), (2, 1), strict=True):
        row = each["rows"]["groups"]
        assert [len(row[name]["each"]) for name in ("probe", "fine-tuned, 10 %")] == [count, 2 * count]
        chosen = row["rates"]["10.0"]
        tried = {one["lr"]: one["mean"] for one in chosen["search"]}
        assert set(tried) == {1e-3, 1e-2}
        assert tried[chosen["lr"]] == max(tried.values())


def test_the_whole_idea_in_one_file(pretrain: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("minimal").main(pretraining=20, finetuning=10)
    printed = capsys.readouterr().out
    for words in ("step    20 of 20: loss", "accuracy on 360 held-out digits", "from scratch: ", "pretrained: "):
        assert words in printed
