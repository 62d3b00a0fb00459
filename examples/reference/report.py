"""A finished run on one page: report.html, which needs no other file, no network and no JavaScript."""

from __future__ import annotations

import base64
import json
import shlex
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .checkpoint import save_text
from .config import Config, config_of_finished
from .evaluation import SIDES, versions, written
from .plan import shortened
from .training import whole_lines

STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 72rem; margin: auto; padding: 1rem; overflow-wrap: anywhere }
.verdict { font-size: 1.2rem; border-left: .3rem solid; padding-left: 1rem }
.box { overflow-x: auto }
pre { white-space: pre-wrap }
figure { margin: 1rem 0 }
img { max-width: min(100%, 45rem); background: white }
.sheet img { max-width: max(100%, 56rem) }
table { border-collapse: collapse; overflow-wrap: normal }
th, td { text-align: left; vertical-align: top; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid #8886 }
tbody th { font-weight: normal }
"""


def write_report(run: Path) -> None:
    """Write report.html of a finished run, from the files in its folder; a word says what is not there."""
    config, name = config_of_finished(run), escape(run.resolve().name)
    found, plan = run / "evaluation.json", run / "plan.txt"
    evaluation: dict[str, Any] | None = json.loads(found.read_text()) if found.exists() else None
    planned = plan.read_text().splitlines() if plan.exists() else []
    parts = {
        "Verdict": verdict(config, evaluation),
        "Plan": table([[line[:12], line[12:]] for line in planned]) if planned else paragraph("There is no plan.txt."),
        "Training": curves(run),
        "Accuracy": accuracy(run, evaluation),
        "Pictures": pictures(run),
        "What to do next": commands(run, config, evaluation),
        "Settings": f"<details><summary>config.json</summary><pre>{escape(config.text())}</pre></details>",
        "Versions and machine": machine(evaluation),
    }
    body = "\n".join(f"<h2>{title}</h2>\n{part}" for title, part in parts.items())
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n{body}\n</body>\n</html>\n"
    )
    # In ASCII: the same in whatever encoding this machine writes, and whatever bytes the names of files hold.
    save_text(run / "report.html", page.encode("ascii", "xmlcharrefreplace").decode())


def paragraph(text: str, kind: str = "plain") -> str:
    return f'<p class="{kind}">{escape(text)}</p>'


def table(rows: list[list[str]], head: list[str] | None = None) -> str:
    """Return rows of text as a table, whose first column names the rows."""
    above = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head or [])
    lines = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    ]
    top, body = f"<thead><tr>{above}</tr></thead>" if head else "", "\n".join(lines)
    return f'<div class="box"><table>{top}\n<tbody>\n{body}\n</tbody></table></div>'


def picture(png: bytes, about: str, kind: str) -> str:
    """Return a picture, inside the page; a "sheet" is scrolled where the screen is narrow, others shrink."""
    source, text = f"data:image/png;base64,{base64.b64encode(png).decode()}", escape(about)
    image = f'<div class="box"><img src="{source}" alt="{text}"></div>'
    return f'<figure class="{kind}">{image}<figcaption>{text}</figcaption></figure>'


def verdict(config: Config, evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        why = "these images have no two classes" if config.draws else "--draws is 0"
        return paragraph(f"Nothing was compared: {why}.", "verdict")
    lines = [f"{one['percent']:g} % of the labels: {one['verdict']}" for one in evaluation["results"]]
    return "\n".join(paragraph(line, "verdict") for line in lines)


def curves(run: Path) -> str:
    """Draw the losses and the learning rate over the epochs."""
    lines = [json.loads(line) for line in whole_lines(run / "metrics.jsonl")]
    if not lines:
        return paragraph("There is no metrics.jsonl.")
    held = [line for line in lines if "held_out_loss" in line]
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for axis, some, what, label in (
        (upper, lines, "loss", "training images"),
        (upper, held, "held_out_loss", "held-out images"),
        (lower, lines, "lr", ""),
    ):
        marker = "." if len(some) < 50 else ""
        axis.plot([line["epoch"] for line in some], [line[what] for line in some], marker=marker, label=label)
        axis.grid(alpha=0.3)
    upper.set_ylabel("loss")
    upper.legend(handles=upper.lines[: 1 + bool(held)])
    lower.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    png = BytesIO()
    figure.savefig(png, dpi=160)
    last = f"Loss at the end: {lines[-1]['loss']:.3f} on training images"
    last += (
        f", {held[-1]['held_out_loss']:.3f} on held-out ones." if held else "; too few are held out for a loss on them."
    )
    return picture(png.getvalue(), last, "curves")


def accuracy(run: Path, evaluation: dict[str, Any] | None) -> str:
    """Return the table of evaluation.json, and its chart."""
    if evaluation is None:
        return paragraph("There is no table: nothing was compared.")
    results, data, draws = evaluation["results"], evaluation["data"], evaluation["protocol"]["draws"]
    rows = [["labelled images", *(f"{one['labelled']:,}" for one in results)]]
    for name in results[0]["methods"]:
        rows.append([name, *(written(one["methods"][name], "+" * name.startswith("gain")) for one in results)])
    rows.append(["always the most common class", *[f"{data['most_common_class']:.1f}"] * len(results)])
    for side in SIDES:
        tuned = [one["methods"][f"fine-tuned, {side}"] for one in results]
        rates = [f"{one['lr']:g}" + " (edge: others may do better)" * one["edge"] for one in tuned]
        rows.append([f"learning rate of fine-tuning, {side}", *rates])
    over = f"mean ± standard deviation over {draws} draws of the labels" if draws > 1 else "one draw of the labels"
    about = f"Accuracy in percent on {data['held_out']:,} held-out images of {data['name']}; {over}. "
    shown = [paragraph(about + f"Classes, {shortened(data['classes'])}.")]
    shown.append(table(rows, ["", *(f"{one['percent']:g} % of the labels" for one in results)]))
    if (run / "evaluation.png").exists():
        shown.append(picture((run / "evaluation.png").read_bytes(), "The same as bars", "chart"))
    return "\n".join(shown)


def pictures(run: Path) -> str:
    """Show the first, a middle and the last sheet of the training, and what visualise.py drew."""
    sheets = sorted((run / "reconstructions").glob("step-*.png"), key=lambda path: int(path.stem[5:]))
    places = sorted({0, len(sheets) // 2, len(sheets) - 1}) if sheets else []
    about = {sheets[place]: f"Reconstructions at step {int(sheets[place].stem[5:]):,}" for place in places}
    about[run / "reconstructions.png"] = "Reconstructions by the finished network"
    about[run / "blocks.png"] = "The image decoded from each block's output"
    about[run / "attention.png"] = "Where the last block looks"
    shown = [picture(path.read_bytes(), text, "sheet") for path, text in about.items() if path.exists()]
    return "\n".join(shown) or paragraph("There are none.")


def commands(run: Path, config: Config, evaluation: dict[str, Any] | None) -> str:
    """Return the commands that use the run."""
    folder, name = shlex.quote(str(run)), evaluation["data"]["name"] if evaluation else "FOLDER_WITH_A_FOLDER_A_CLASS"
    data = f"--data {shlex.quote(name)}"
    same = name == config.data and not config.no_labels
    judged = ([] if same else [data]) + ([] if config.draws else ["--draws 3"])
    lines = {
        "See which photographs are alike, and get features of them:": f"embed.py {folder} PHOTOS",
        "Train a classifier:": f"finetune.py {folder} {data}",
        "Compare on 1, 10 and 100 % of the labels:": " ".join([f"evaluate.py {folder}", *judged]),
        "Draw reconstructions, what each block decodes to, and attention:": f"visualise.py {folder}",
    }
    return "\n".join(f"{paragraph(k)}\n<pre>python examples/{escape(v)}</pre>" for k, v in lines.items())


def machine(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:  # the plan names the device
        return table([[name, version] for name, version in versions().items()])
    rows = {"command": evaluation["command"], "device": evaluation["device"], **evaluation["versions"]}
    return table([[name, value] for name, value in rows.items()])
