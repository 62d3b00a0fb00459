"""The page that a run ends in: the files' own figures, nothing from elsewhere, and safe from names of folders."""

from __future__ import annotations

import base64
import importlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import pytest

for library in ("timm", "accelerate", "kornia", "sklearn", "matplotlib"):
    pytest.importorskip(library)

SMALL = ("--dim", "16", "--depth", "2", "--heads", "2", "--epochs", "1")
QUICK = ("--draws", "2", "--labels", "50", "--rates", "1e-3", "--finetune-steps", "2", "--finetune-epochs", "1")
VOID = ("img", "meta")


class Page(HTMLParser):
    """A page's text, attributes and table rows; its tags are to be closed in the order that they were opened in."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        (found,) = [rest for first, *rest in self.rows if first.strip() == name]
        return [cell.strip() for cell in found]

    def pictures(self) -> list[bytes]:
        sources = [attributes["src"] for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [base64.b64decode(source.partition(",")[2], validate=True) for source in sources]


def photographs(folder: Path, classes: tuple[str, ...], number: int = 20) -> Path:
    image = pytest.importorskip("PIL.Image")
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            image.new("RGB", (8, 8), (10 * i, 200 * place, 0)).save(folder / name / f"{i}.png")
    return folder


Script = Callable[..., None]


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    """Return a function that runs a script of the examples with the words of its command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
        yield lambda name, *words: importlib.import_module(name).main([str(word) for word in words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, script: Script) -> Path:
    """Return the folder of a short run on the digits."""
    run = tmp_path_factory.mktemp("runs") / "a & <b>run"
    script("pretrain", "--output", run, *SMALL, *QUICK, "--labels", "5", "50")
    return run


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def check_nothing_from_elsewhere(page: Page) -> None:
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    names = {name for _, attributes in page.tags for name in attributes}
    assert names <= {"src", "alt", "class", "lang", "charset", "name", "content", "scope"}
    assert not re.search(r"url\(|@import|https?:", page.source)


def test_a_run_of_digits_ends_in_a_page_of_its_figures(finished: Path) -> None:
    page, found = Page(finished / "report.html"), json.loads((finished / "evaluation.json").read_text())
    check_nothing_from_elsewhere(page)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert len(found["results"]) == 2
    for one in found["results"]:
        assert f"{one['percent']:g} % of the labels: {one['verdict']}" in page.text
    for name in found["results"][0]["methods"]:
        cells = page.row(name)
        assert len(cells) == 2
        for cell, one in zip(cells, found["results"], strict=True):
            mean, std = one["methods"][name]["mean"], one["methods"][name]["std"]
            assert [float(part) for part in cell.split("±")] == [round(mean, 1), round(std, 1)]
    assert page.row("labelled images") == [str(one["labelled"]) for one in found["results"]]
    assert page.row("torch") == [found["versions"]["torch"]]
    assert page.row("command") == [found["command"]]
    assert page.row("pretraining")[0].startswith("1 epochs, 22 steps")  # of the plan
    assert json.loads((finished / "config.json").read_text())["version_of_images"] in page.text

    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    loss, held_out = lines[-1]["loss"], lines[-1]["held_out_loss"]
    assert f"Loss at the end: {loss:.3f} on training images, {held_out:.3f} on held-out ones." in page.text
    curves, *others = page.pictures()
    assert curves.startswith(b"\x89PNG")
    assert others == [(finished / name).read_bytes() for name in ("evaluation.png", "reconstructions/step-000022.png")]
    assert f"python examples/evaluate.py '{finished}'\n" in page.text  # needs no --data


def test_what_is_found_later_comes_in(run: Path, script: Script) -> None:
    for step in (5, 7, 1_000_000):
        shutil.copy(run / "reconstructions/step-000022.png", run / f"reconstructions/step-{step:06}.png")
        with open(run / f"reconstructions/step-{step:06}.png", "ab") as file:
            file.write(str(step).encode())
    script("visualise", run)
    names = ("reconstructions.png", "blocks.png", "attention.png")
    shown = [
        "evaluation.png",
        *(f"reconstructions/step-{step}.png" for step in ("000005", "000022", "1000000")),
        *names,
    ]
    page = Page(run / "report.html")
    assert page.pictures()[1:] == [(run / name).read_bytes() for name in shown]
    check_nothing_from_elsewhere(page)

    before = page.row("labelled images")
    script("evaluate", run, "--labels", "20")
    page = Page(run / "report.html")
    assert page.row("labelled images") == [
        str(json.loads((run / "evaluation.json").read_text())["results"][0]["labelled"])
    ]
    assert page.row("labelled images")[0] not in before
    assert page.row("command")[0].startswith("python examples/evaluate.py ")


def test_names_are_shown_and_not_obeyed(tmp_path: Path, script: Script) -> None:
    classes = ("<script>alert(1)", "R&amp;D &", "\"x' onload='y", "blüte ☃")
    data, run = photographs(tmp_path / "<i>data", classes), tmp_path / "run"
    size = ("--image-size", "8", "--patch-size", "2", "--group-size", "1", "2", "--batch-size", "16")
    script("pretrain", "--data", data, "--output", run, *SMALL, *size, *QUICK)
    page = Page(run / "report.html")
    check_nothing_from_elsewhere(page)
    assert page.row("classes") == [f"4: {', '.join(f'{name} (16)' for name in sorted(classes))}"]
    assert f"held-out images of {data};" in page.text
    assert page.source.isascii()


def test_a_folder_without_labels_has_a_page_that_says_so(tmp_path: Path, script: Script) -> None:
    data, run = photographs(tmp_path / "data", (".",), 9), tmp_path / "run"
    script("pretrain", "--data", data, "--output", run, *SMALL, "--batch-size", "8")
    page = Page(run / "report.html")
    check_nothing_from_elsewhere(page)
    assert "Nothing was compared: these images have no two classes." in page.text
    assert "There is no table" in page.text
    assert "too few are held out for a loss on them" in page.text
    assert f"evaluate.py {run} --data FOLDER_WITH_A_FOLDER_A_CLASS" in page.text
    assert page.row("torch") == [version("torch")]
    assert len(page.pictures()) == 2  # curves and reconstructions


def test_what_is_not_there_is_left_out(run: Path) -> None:
    shutil.rmtree(run / "reconstructions")
    for name in ("plan.txt", "metrics.jsonl", "evaluation.json", "evaluation.png"):
        (run / name).unlink()
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"draws": 0}))
    importlib.import_module("reference.report").write_report(run)
    page = Page(run / "report.html")
    for words in ("--draws is 0.", "There is no plan.txt.", "There is no metrics.jsonl.", "There are none."):
        assert words in page.text
    assert not page.pictures()
    assert f"evaluate.py {run} --data FOLDER_WITH_A_FOLDER_A_CLASS --draws 3" in page.text
