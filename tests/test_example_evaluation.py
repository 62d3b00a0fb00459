"""The example's evaluation: fair to both sides, blind to the held-out images while it chooses, and resumable."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

for library in ("timm", "accelerate", "kornia", "sklearn", "matplotlib"):
    pytest.importorskip(library)

SMALL = ("--dim", "16", "--depth", "2", "--heads", "2", "--epochs", "1", "--batch-size", "256", "--draws", "0")
QUICK = ("--labels", "5", "--draws", "2", "--search-draws", "2", "--rates", "1e-3", "1e-2", "--steps", "2", "3",
         "--epochs", "1", "1")  # fmt: skip
FILES = ("evaluation.json", "evaluation.jsonl", "evaluation.png")


@pytest.fixture(scope="module")
def evaluate() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
        yield importlib.import_module("evaluate")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, evaluate: ModuleType) -> Path:
    """Return the folder of a short run on the digits, evaluated once."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    importlib.import_module("pretrain").main(["--output", str(run), *SMALL])
    evaluate.main([str(run), *QUICK])
    return run


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    """Return a copy of the run that was not evaluated yet."""
    return Path(shutil.copytree(finished, tmp_path / "run", ignore=lambda *_: FILES))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines() if line]


def figures(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())["results"][0]["methods"]
    return found


def test_a_run_ends_in_a_table_a_file_and_a_chart(
    finished: Path, evaluate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([str(finished), *QUICK])  # from what was found before
    printed = capsys.readouterr().out
    for words in ("360 held-out images", "5 % of labels", "gain by pretraining", "edge of --rates", "±"):
        assert words in printed
    assert (finished / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    whole = json.loads((finished / "evaluation.json").read_text())
    assert whole["command"].split()[:3] == ["python", "examples/evaluate.py", str(finished)]
    found = figures(finished)
    assert set(found) == {
        "fine-tuned, pretrained", "fine-tuned, from scratch", "gain by pretraining", "linear probe, pretrained",
        "linear probe, untrained", "nearest neighbours, pretrained", "nearest neighbours, untrained",
        "nearest neighbours, pixels",
    }  # fmt: skip
    ours, theirs = (found[f"fine-tuned, {side}"] for side in ("pretrained", "from scratch"))
    for side in (ours, theirs):
        assert len(side["each"]) == 2
        assert side["mean"] == pytest.approx(sum(side["each"]) / 2)
        assert side["std"] == pytest.approx(abs(side["each"][0] - side["each"][1]) / 2**0.5)
    gains = [a - b for a, b in zip(ours["each"], theirs["each"], strict=True)]
    assert found["gain by pretraining"]["each"] == pytest.approx(gains)
    assert f"{ours['mean']:.1f} ± {ours['std']:.1f}" in printed
    assert found["nearest neighbours, pixels"]["mean"] > 60  # of digits; chance is 10
    assert found["linear probe, pretrained"]["mean"] > 25


def test_the_best_of_the_search_is_what_the_figures_are_made_with(finished: Path) -> None:
    for side in ("pretrained", "from scratch"):
        chosen = figures(finished)[f"fine-tuned, {side}"]
        of_side = [line for line in lines(finished) if line["side"] == side]
        searched = [line for line in of_side if line["purpose"] == "search"]
        assert {(line["lr"], line["steps"], line["seed"]) for line in searched} == {
            (lr, steps, seed) for lr in (1e-3, 1e-2) for steps in (2, 3) for seed in (100, 101)
        }
        best = max(chosen["search"], key=lambda one: one["mean"])
        final = [line for line in of_side if line["purpose"] == "final"]
        assert {(line["lr"], line["steps"]) for line in final} == {(best["lr"], best["steps"])}
        assert [line["seed"] for line in final] == [0, 1]
        assert [line["accuracy"] for line in final] == chosen["each"]


def test_longer_budgets_try_the_best_rate_and_its_neighbours(evaluate: ModuleType) -> None:
    tried: list[tuple[float, int]] = []

    def score(lr: float, steps: int) -> list[float]:
        tried.append((lr, steps))
        return [10 - abs(lr - 4) + steps]

    from reference.evaluation import search

    lr, steps, _ = search(score, [1, 2, 4, 8, 16], [10, 20])
    assert (lr, steps) == (4, 20)
    assert tried == [(1, 10), (2, 10), (4, 10), (8, 10), (16, 10), (2, 20), (4, 20), (8, 20)]


def test_the_search_never_sees_the_held_out_images(
    run: Path, finished: Path, evaluate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reference.data import of_run

    def with_wrong_test_labels(*arguments: Any) -> Any:
        data: Any = of_run(*arguments)
        data.test.labels = (data.test.labels + 1) % 10
        data.test.images = data.test.images.flip(-1)
        return data

    monkeypatch.setattr("reference.finished.of_run", with_wrong_test_labels)
    evaluate.main([str(run), *QUICK])

    def searched(run: Path) -> list[dict[str, Any]]:
        return [{**line, "seconds": 0} for line in lines(run) if line["purpose"] == "search"]

    def chosen(run: Path) -> dict[str, Any]:
        return {k: [v.get(name) for name in ("lr", "steps", "C", "k")] for k, v in figures(run).items()}

    assert searched(run) == searched(finished)
    assert chosen(run) == chosen(finished)
    pixels = "nearest neighbours, pixels"
    assert figures(run)[pixels]["mean"] < figures(finished)[pixels]["mean"] - 30


def test_layer_decay_slows_each_block_more_than_the_next(run: Path, evaluate: ModuleType) -> None:
    from reference.evaluation import evaluation_of
    from reference.finetuning import by_layer
    from reference.finished import opened
    from reference.model import Classifier

    model = Classifier(evaluation_of(opened(run, None)).autoencoder("pretrained", 0), 10)
    encoder: Any = model.body.encoder
    for decay in (1.0, 0.5):
        scales = {weight: one["scale"] for one in by_layer(model, 0.05, decay) for weight in one["params"]}
        assert set(scales) == set(model.parameters())
        blocks = [scales[block.attn.qkv.weight] for block in encoder.blocks]
        assert blocks == [decay ** (len(blocks) - 1 - number) for number in range(len(blocks))]
        assert scales[encoder.patch_embed.proj.weight] == decay ** len(blocks)
        assert scales[model.head.weight] == scales[encoder.norm.weight] == 1
    shares = ("--labels", "10", "--rates", "1e-3")
    evaluate.main([str(run), *QUICK, *shares])
    same = figures(run)["fine-tuned, pretrained"]["each"]
    evaluate.main([str(run), *QUICK, *shares, "--layer-decay", "0.01"])
    assert figures(run)["fine-tuned, pretrained"]["each"] != same


def test_both_sides_are_trained_on_the_same_images(
    run: Path, evaluate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reference.finetuning import finetune, outputs
    from reference.model import Classifier

    used: list[Any] = []

    def listening(model: Any, data: Any, source: Any, labelled: Tensor, *rest: Any) -> None:
        used.append((source.labels[labelled].bincount().tolist(), labelled.tolist(), rest[2]))
        finetune(model, data, source, labelled, *rest)

    def listening_too(function: Any, data: Any, source: Any, indices: Tensor | None = None) -> Any:
        if isinstance(function, Classifier) and indices is not None:  # scored in the search
            assert source is data.train
            assert not set(indices.tolist()) & set(used[-1][1])
        return outputs(function, data, source, indices)

    monkeypatch.setattr("reference.evaluation.finetune", listening)
    monkeypatch.setattr("reference.evaluation.outputs", listening_too)
    evaluate.main([str(run), *QUICK, "--labels", "10", "--rates", "1e-3"])
    ours, theirs = used[: len(used) // 2], used[len(used) // 2 :]
    assert ours == theirs
    assert [seed for _, _, seed in ours] == [100, 101, 100, 101, 0, 1]
    draws = {seed: labelled for _, labelled, seed in ours}
    assert len({tuple(sorted(labelled)) for labelled in draws.values()}) == 4
    for counts, labelled, _ in ours:
        assert len(set(labelled)) == len(labelled)
        assert set(counts) <= {14, 15}  # a tenth of the 139 to 146 of each class


def test_the_sides_differ_in_their_weights_alone(finished: Path, evaluate: ModuleType) -> None:
    from reference.evaluation import SIDES, evaluation_of
    from reference.finished import opened

    evaluation = evaluation_of(opened(finished, None))
    ours, theirs = (evaluation.autoencoder(side, 0).state_dict() for side in SIDES)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert all(torch.equal(ours[name], value) for name, value in evaluation.weights.items())
    assert not torch.equal(ours["encoder.blocks.0.attn.qkv.weight"], theirs["encoder.blocks.0.attn.qkv.weight"])
    other = evaluation.autoencoder("from scratch", 1).state_dict()
    assert not torch.equal(other["encoder.blocks.0.attn.qkv.weight"], theirs["encoder.blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_fine_tuning_takes_the_precision_of_the_run(
    run: Path, evaluate: ModuleType, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    from reference.model import Classifier

    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"precision": precision}))
    forward = Classifier.forward
    trained: set[torch.dtype] = set()
    judged: set[torch.dtype] = set()

    def listening(self: Any, images: Tensor) -> Tensor:
        logits: Tensor = forward(self, images)
        (trained if self.training else judged).add(logits.dtype)
        return logits

    monkeypatch.setattr(Classifier, "forward", listening)
    evaluate.main([str(run), *QUICK, "--labels", "10", "--rates", "1e-3"])
    assert (trained, judged) == ({dtype}, {torch.float32})


def test_what_was_killed_goes_on_and_runs_nothing_twice(run: Path, finished: Path, evaluate: ModuleType) -> None:
    whole = (finished / "evaluation.jsonl").read_bytes()
    found, kept = run / "evaluation.jsonl", whole.splitlines(keepends=True)[:12]
    found.write_bytes(b"".join(kept) + whole.splitlines()[12][:40])  # killed in the middle of a line
    evaluate.main([str(run), *QUICK])
    assert found.read_bytes().startswith(b"".join(kept))
    went_on = [json.loads(line) for line in found.read_bytes().splitlines() if line.endswith(b"}")]
    assert [{**line, "seconds": 0} for line in went_on] == [{**line, "seconds": 0} for line in lines(finished)]
    assert figures(run) == figures(finished)
    before = found.read_bytes()
    evaluate.main([str(run), *QUICK])
    assert found.read_bytes() == before


def test_figures_of_other_weights_are_not_taken(run: Path, finished: Path, evaluate: ModuleType) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copy(finished / "evaluation.jsonl", run)
    weights = load_file(run / "autoencoder.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, run / "autoencoder.safetensors")
    evaluate.main([str(run), *QUICK])
    assert len(lines(run)) == 2 * len(lines(finished))


def test_figures_of_other_images_are_not_taken(run: Path, tmp_path: Path, evaluate: ModuleType) -> None:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for name in ("dark", "light"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(10):
                picture = image.new("RGB", (8, 8), (i, 0, 0) if name == "dark" else (255, 200, 100 + i))
                picture.save(tmp_path / "images" / part / name / f"{i}.png")
    run, images = tmp_path / "photographs", tmp_path / "images"
    size = ("--image-size", "8", "--patch-size", "2", "--group-size", "1", "2")
    importlib.import_module("pretrain").main(
        ["--data", str(images), "--output", str(run), *SMALL, *size, "--batch-size=8"]
    )
    quick = [str(run), *QUICK, "--labels", "50"]
    evaluate.main(quick)
    pixels = "nearest neighbours, pixels"
    assert figures(run)[pixels]["mean"] == 100
    for old, new in (("dark", "x"), ("light", "dark"), ("x", "light")):
        (images / "test" / old).rename(images / "test" / new)
    with pytest.raises(SystemExit, match="are not those that"):
        evaluate.main(quick)
    evaluate.main([*quick, "--data", str(images)])
    assert figures(run)[pixels]["mean"] == 0


def test_all_labels_are_searched_on_nine_tenths_of_them(evaluate: ModuleType) -> None:
    from reference.data import load
    from reference.draws import draw, draw_for_search

    labels = load("digits", 8, torch.device("cpu")).train.labels
    assert labels is not None
    names = [str(c) for c in range(10)]
    labelled, scored = draw_for_search(labels, 100, 100, names)
    assert len(labelled) + len(scored) == len(labels)
    assert len(scored) == pytest.approx(len(labels) / 10, abs=5)
    assert sorted(draw(labels, 100, 0, names).tolist()) == list(range(len(labels)))


def test_pretraining_ends_in_the_figures_of_the_evaluation(
    tmp_path: Path, evaluate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    protocol = ("--draws", "2", "--labels", "5", "--rates", "1e-3", "1e-2", "--finetune-steps", "3")
    importlib.import_module("pretrain").main(
        ["--output", str(run), *SMALL[:-2], *protocol, "--finetune-epochs", "1", "--threads", "1"]
    )
    printed = capsys.readouterr().out
    for words in (
        "comparison   8 fine-tunings",
        "5 % of labels",
        "over 2 draws of the labels",
        "searched for each side",
    ):
        assert words in printed
    ended, before = figures(run), (run / "evaluation.jsonl").read_bytes()
    evaluate.main([str(run), "--labels", "5"])
    assert figures(run) == ended
    assert (run / "evaluation.jsonl").read_bytes() == before
    table = printed[printed.index("\nAccuracy in percent") :]
    assert capsys.readouterr().out.endswith(table)


def test_one_rate_and_length_need_no_search(run: Path, evaluate: ModuleType) -> None:
    evaluate.main([str(run), *QUICK, "--rates", "1e-2", "--steps", "2", "--epochs", "1"])
    fine_tuned = [line for line in lines(run) if "lr" in line]
    assert [(line["purpose"], line["lr"], line["steps"]) for line in fine_tuned] == [("final", 1e-2, 2)] * 4


def test_a_dry_run_of_the_evaluation_writes_nothing(
    run: Path, evaluate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([str(run), *QUICK, "--dry-run"])
    assert re.search(r"comparison   20 fine-tunings: \d+ s", capsys.readouterr().out)
    assert not any((run / name).exists() for name in FILES)


def test_other_data_with_labels(run: Path, tmp_path: Path, evaluate: ModuleType) -> None:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for colour in ("red", "green"):
            folder = tmp_path / "photographs" / part / colour
            folder.mkdir(parents=True)
            for i in range(10):
                image.new("RGB", (12, 12), colour).save(folder / f"{i}.png")
    with pytest.raises(SystemExit, match=r"pretrained on images of 1 channels; those of .* have 3"):
        evaluate.main([str(run), *QUICK, "--data", str(tmp_path / "photographs")])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--labels", "0.1"), "that many percent of the 142 images of 0 is none"),
        (("--labels", "101"), "2"),  # argparse's exit status
        (("--rates", "0"), "2"),
        (("--rates", "nan"), "2"),
        (("--labels", "nan"), "2"),
        (("--draws", "101"), "2"),
        (("--epochs", "1", "2", "3"), "2"),
    ],
)
def test_wrong_arguments_end_before_anything_is_written(
    run: Path, evaluate: ModuleType, words: tuple[str, ...], error: str
) -> None:
    with pytest.raises(SystemExit, match=error):
        evaluate.main([str(run), *words])
    assert not any((run / name).exists() for name in FILES)


def test_what_is_no_finished_run_is_refused(run: Path, tmp_path: Path, evaluate: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"no run folder of pretrain\.py"):
        evaluate.main([str(tmp_path / "nowhere")])
    (run / "autoencoder.safetensors").unlink()
    with pytest.raises(SystemExit, match="not finished"):
        evaluate.main([str(run)])


def test_data_without_labels_are_refused(run: Path, tmp_path: Path, evaluate: ModuleType) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "flat").mkdir()
    for i in range(4):
        image.new("RGB", (12, 12)).save(tmp_path / "flat" / f"{i}.png")
    from reference.data import load
    from reference.evaluation import evaluation_of
    from reference.finished import opened

    flat, one = (tmp_path / name for name in ("flat", "one"))
    finished = opened(run, None)
    with pytest.raises(SystemExit, match="no labels or no held-out images; give --data"):
        evaluation_of(finished._replace(data=load(str(flat), 8, finished.device)))
    for part in ("train", "test"):
        shutil.copytree(tmp_path / "flat", tmp_path / "one" / part / "thing")
    with pytest.raises(SystemExit, match="one has one class, thing: nothing is to be told apart"):
        evaluation_of(finished._replace(data=load(str(one), 8, finished.device)))
