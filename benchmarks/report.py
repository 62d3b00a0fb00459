"""Measure all rows side by side and say what came out: tables on the screen, numbers and two plots in a folder.

    python benchmarks/report.py            # everything, some ten minutes
    python benchmarks/report.py --quick    # one minute, few rows, a table to paste into an issue; needs torch alone

The rows of a table take turns, round after round, so that what else the machine does slows all of them alike. A turn
repeats a fast row until it has lasted some milliseconds, after an untimed call that brings back its memory and caches.
Ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import peers
import rows
import torch

TURN, LONG = 0.005, 0.1  # seconds that a turn lasts at least; of a call that needs no untimed one before it
TABLE, FEWEST = 30.0, 5  # seconds after which a table ends, and rounds that it has in any case
MASKS = 20_000
UNITS = {
    "masks": ("µs a mask", 1e6),
    "scaling": ("ns a patch", 1e9),
    "transform": ("ms", 1e3),
    "image": ("µs", 1e6),
    "grids": ("ms", 1e3),
    "busy": ("ms", 1e3),
    "step": ("ms", 1e3),
}
BASELINES = {"transform": rows.CLONE, "image": rows.CLONE, "grids": rows.CLONE, "busy": rows.CLONE, "step": rows.ALONE}
# A process on each core, which ends when this one does.
SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
PARTS = [*UNITS, "quality", "loader"]
QUICK = 12.0  # seconds for each of the three tables of --quick
QUICK_ROWS = {
    "masks": (
        "gmml_aug, groups",
        "gmml_aug, group_size=(1, 1)",
        "lightly random_block_mask",
        "lightly random_token_mask",
    ),
    "transform": (
        rows.CLONE,
        *(f"gmml_aug, {fill}{place}" for fill in ("zeros", "noise", "alien") for place in ("", ", in place")),
        "Kornia RandomErasing",
        "torchvision v2.CutMix",
    ),
}
Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--rounds", type=int, default=30, help=f"or as many as fit in {TABLE:g} s for each table")
    parser.add_argument("--quick", action="store_true", help="one minute, few rows, one table; writes nothing")
    parser.add_argument("--only", choices=PARTS, metavar="GROUP", help=", ".join(PARTS))
    parser.add_argument("--gmml", metavar="PATH", help="a checkout of github.com/Sara-Ahmed/GMML")
    parser.add_argument("--dinov2", metavar="PATH", help="a checkout of github.com/facebookresearch/dinov2")
    parser.add_argument("--output", type=Path, help="folder (a whole report: benchmarks/results, a part: none)")
    args = parser.parse_args()
    if args.quick and (args.only or args.output):
        parser.error("--quick is one table on the screen; leave --only and --output out")
    if args.output is None and args.only is None:
        args.output = Path(__file__).parent / "results"
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    random.seed(0)

    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's profiler, which measures memory, is chatty
    # This measures the steady state; how a process gets there is measured by the part "loader".
    os.environ.setdefault("GMML_AUG_BACKENDS", "triton,compiled,functions")
    machine = about_machine(args.device, args.threads)
    if args.quick:
        print_quick(machine, args.device, args.rounds)
        return
    print("; ".join(f"{key}: {value}" for key, value in machine.items()))
    cases: dict[tuple[str, str], list[rows.Row]] = {}
    for row in rows.every(args.device, args.gmml, args.dinov2):
        cases.setdefault((row.group, row.case), []).append(row)
    tables: list[Result] = []
    for (group, case), members in cases.items():
        if args.only in (None, group):
            torch.set_num_threads(members[0].threads or args.threads)
            with busy_cores() if group == "busy" else nullcontext():
                tables.append({"group": group, "case": case, "rows": measure(members, args.device, args.rounds)})
            print_table(tables[-1])
    torch.set_num_threads(args.threads)
    drawn = quality(cases["masks", "batch 256"]) if args.only in (None, "quality") else []
    loaders = loader_starts(args.dinov2) if args.only in (None, "loader") and args.device == "cpu" else []

    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"\W+", "-", machine["machine"].lower()).strip("-")
        report = {**machine, "tables": tables, "quality": drawn, "loader": loaders}
        text = re.sub(r",\n +(?=[0-9])", ", ", json.dumps(report, indent=1, ensure_ascii=False))  # a list in one line
        (args.output / f"{slug}.json").write_text(text + "\n")
        title = f"{machine['machine']}, torch {machine['torch']}, {machine['date']}"
        plot_masks([t for t in tables if t["group"] == "masks"], title, args.output / f"{slug}-masks.png")
        plot_transform([t for t in tables if t["group"] == "transform"], title, args.output / f"{slug}-transform.png")
        print(f"\nwrote {args.output / slug}.json and the plots beside it")


def about_machine(device: str, threads: int) -> dict[str, str]:
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        name = found[1]
    machine = f"{name}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}"
    if device == "cuda":
        machine = torch.cuda.get_device_name()
    about = {"machine": machine, "device": device, "python": platform.python_version()}
    for package in ("torch", "torchvision", "kornia", "lightly", "timm", "triton", "numba"):
        try:
            about[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            about[package] = "not installed"
    about["date"] = datetime.date.today().isoformat()
    here = Path(__file__).parent.parent
    try:
        commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=here, text=True).strip()
        measured = ["gmml_aug", "benchmarks", ":!benchmarks/results"]
        changed = subprocess.check_output(["git", "status", "--porcelain", "--", *measured], cwd=here, text=True)
        about["commit"] = f"{commit}, changed since" if changed else commit
    except (OSError, subprocess.CalledProcessError):
        about["commit"] = "unknown"
    return about


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core busy with another process."""
    command = [sys.executable, "-c", SPIN, str(os.getpid())]
    others = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def loader_starts(dinov2: str | None) -> list[Result]:
    """Tell how soon two workers of a DataLoader give masks, in processes of their own: their start is what counts."""
    results: list[Result] = []
    lines = []
    script = Path(__file__).parent / "loader.py"
    for start in ("fork", "spawn"):
        for how in ("gmml_aug", "gmml_aug, functions alone", "lightly random_block_mask", "DINOv2 MaskingGenerator"):
            if how.startswith("DINOv2") and dinov2 is None:
                continue
            runs = []
            for _ in range(3):
                command = [sys.executable, str(script), "--how", how, "--start", start, "--dinov2", dinov2 or ""]
                environment = {**os.environ, "GMML_AUG_BACKENDS": "functions" if "alone" in how else ""}
                runs.append(json.loads(subprocess.check_output(command, env=environment, text=True)))
            result = {"name": how, "start": start, **{key: [run[key] for run in runs] for key in runs[0]}}
            results.append(result)
            middle = {key: statistics.median(result[key]) for key in runs[0]}
            lines.append([f"{how}, {start}", f"{middle['first_batch']:.2f}", f"{middle['images_per_second']:,.0f}"])
            lines[-1].append(f"{middle['first_mask'] * 1e3:.1f}" if "first_mask" in middle else "")
    head = [
        "two workers, one mask a sample",
        "s to the first batch",
        "images/s after it",
        "ms to a process's first mask",
    ]
    print_markdown("loader: batches of 64 masks of 14 x 14 patches (median of 3 runs)", head, lines)
    return results


def print_quick(machine: dict[str, str], device: str, rounds: int) -> None:
    """Print the rows that tell most, as one table to paste."""
    tables: dict[tuple[str, str], list[rows.Row]] = {}
    for row in rows.every(device):
        masks, images = row.case in ("one image", "batch 256"), row.case.endswith("224 float32")
        if row.name in QUICK_ROWS.get(row.group, ()) and (masks or images):
            tables.setdefault((row.group, row.case), []).append(row)
    print(", ".join(f"{key}: {value}" for key, value in machine.items() if value != "not installed"))
    print("\n| | median | middle half | beside, round for round |\n|---|---|---|---|")
    for (group, case), members in tables.items():
        (unit, factor), baseline = UNITS[group], BASELINES.get(group)
        table: Result = {"rows": measure(members, device, rounds, QUICK, memory=False)}
        there = {result["name"] for result in table["rows"] if "skipped" not in result}
        for result in table["rows"]:
            if result["name"] not in there:
                print(f"| {case}: {result['name']} | {result['skipped']} | | |")
                continue
            each = factor / result["amount"]
            low, high = (f"{seconds * each:,.2f}" for seconds in result["middle_half"])
            beside = [
                f"{times_as_fast(table, result, name):.2f} x {name}" for name in result["against"] if name in there
            ]
            if baseline and result["name"] != baseline:
                beside.insert(0, f"{1 / times_as_fast(table, result, baseline):.2f} of {baseline}")
            cells = f"{case}: {result['name']}", f"{result['median'] * each:,.2f} {unit}", f"{low} to {high}"
            print(f"| {' | '.join(cells)} | {'; '.join(beside)} |", flush=True)


def measure(
    members: list[rows.Row], device: str, rounds: int, most: float = TABLE, memory: bool = True
) -> list[Result]:
    """Time rows in turns for so many rounds or ``most`` seconds, and the memory of those that write images."""
    results: list[Result] = []
    running: list[tuple[Result, rows.Call, int, bool]] = []
    for row in members:
        result: Result = {"name": row.name, "amount": row.amount, "against": row.against, "seconds": []}
        results.append(result)
        try:
            call = row.build()
            turn(call, 1, device)  # the first call may compile or load something
            once = turn(call, 1, device)
        except (ImportError, FileNotFoundError) as reason:
            result["skipped"] = str(reason)
            continue
        except Exception as error:  # what fails here, a dtype say, is a row like the others
            result["skipped"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        running.append((result, call, math.ceil(TURN / once), once < LONG))
    start = time.perf_counter()
    for round_ in range(max(2, rounds) + 1):
        for result, call, repeats, settle in running:
            if settle:
                turn(call, repeats, device)  # not counted: what the row before left in the caches is gone
            seconds = turn(call, repeats, device)
            if round_:  # the first one warms up
                result["seconds"].append(float(f"{seconds:.4g}"))
        if round_ >= FEWEST and time.perf_counter() - start > most:
            break
    for result, call, _, settle in running:
        result["median"] = statistics.median(result["seconds"])
        low, _, high = statistics.quantiles(result["seconds"], n=4, method="inclusive")
        result["middle_half"] = low, high
        if not (memory and settle):
            continue
        if device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call()
            result["extra_memory"] = torch.cuda.max_memory_allocated() - before
        elif members[0].group == "transform":
            result["extra_memory"] = extra_memory(call)
    return results


def extra_memory(call: rows.Call) -> int:
    """Return how many bytes torch and NumPy allocate at most, beyond what is there, while a call runs on the CPU."""
    profiler: Any = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    tracemalloc.start()  # sees what NumPy allocates
    try:
        with profiler:
            kept = call()
        others = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del kept
    return peak + others


def turn(call: rows.Call, repeats: int, device: str) -> float:
    """Return the seconds of a call."""
    if isinstance(call, rows.Training):
        call.restart()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def times_as_fast(table: Result, row: Result, other: str) -> float:
    """Return how many times as fast as another row one was, round for round."""
    seconds: list[float] = next(r["seconds"] for r in table["rows"] if r["name"] == other)
    ratio: float = statistics.median(b / a for a, b in zip(row["seconds"], seconds, strict=True))
    return ratio


def print_table(table: Result) -> None:
    group = table["group"]
    (unit, factor), baseline = UNITS[group], BASELINES.get(group, "")
    measured = [row["name"] for row in table["rows"] if "skipped" not in row]
    head = [table["case"], unit, "middle half", {"masks": "masks/s", "scaling": "ms"}.get(group, f"times {baseline}")]
    memory = group == "transform" and any("extra_memory" in row for row in table["rows"])
    head += ["extra memory (torch's and NumPy's), MiB"] * memory + ["times as fast as"] * any(
        row["against"] for row in table["rows"]
    )
    lines = []
    for row in table["rows"]:
        if "skipped" in row:
            lines.append([row["name"], f"skipped: {row['skipped']}"])
            continue
        each, (low, high) = factor / row["amount"], row["middle_half"]
        line = [row["name"], f"{row['median'] * each:,.2f}", f"{low * each:,.2f} to {high * each:,.2f}"]
        if group == "masks":
            line.append(f"{row['amount'] / row['median']:,.0f}")
        elif group == "scaling":
            line.append(f"{row['median'] * 1e3:,.2f}")
        else:
            line.append(f"{1 / times_as_fast(table, row, baseline):.2f}")
        if memory:
            line.append(f"{row['extra_memory'] / 2**20:,.0f}" if "extra_memory" in row else "")
        beside = [name for name in row["against"] if name in measured]
        line.append("; ".join(f"{times_as_fast(table, row, name):.2f} x {name}" for name in beside))
        lines.append(line)
    rounds = max(len(row["seconds"]) for row in table["rows"])
    print_markdown(f"{group}: {table['case']} (median of {rounds} rounds)", head, lines)


def print_markdown(title: str, head: list[str], lines: list[list[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for line in lines:
        print(f"| {' | '.join([*line, *[''] * len(head)][: len(head)])} |", flush=True)


def quality(members: list[rows.Row]) -> list[Result]:
    """Tell what each way of drawing masks gives where 98 of 196 patches are asked for."""
    drawn: list[Result] = []
    lines = []
    for row in members:
        if "another ratio" in row.name:  # which asks for other numbers
            continue
        try:
            draw: Any = row.build()
        except (ImportError, FileNotFoundError) as reason:
            lines.append([row.name, f"skipped: {reason}"])
            continue
        mask = torch.cat([draw().cpu() for _ in range(-(-MASKS // row.amount))])[:MASKS]
        count, often = mask.flatten(1).sum(1), mask.double().mean(0)
        least, most, exact = int(count.min()), int(count.max()), float((count == peers.HIDDEN).double().mean())
        uneven = float(often.max() / often.min())
        drawn.append({"name": row.name, "least": least, "most": most, "exact": exact, "most_to_least_hidden": uneven})
        lines.append([row.name, f"{least} to {most}", f"{exact:.1%}", f"{uneven:.2f} : 1"])
    title = f"quality: {MASKS:,} masks of 14 x 14 patches, of which 98 are asked for"
    print_markdown(title, ["", "patches hidden", "exactly 98", "most : least hidden patch"], lines)
    return drawn


def plot_masks(tables: list[Result], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float]]] = {}
    for row in (row for table in tables if "thread" not in table["case"] for row in table["rows"]):
        if "median" in row:
            lines.setdefault(row["name"], []).append((row["amount"], row["amount"] / row["median"]))
    if not lines:
        return
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        ours = name.startswith("gmml_aug")
        axes.loglog(*zip(*points, strict=True), marker="o", label=name, linestyle="-" if ours else "--")
    axes.set(xlabel="masks drawn in one call", ylabel="masks a second (higher is better)", xticks=rows.MASK_BATCHES)
    axes.set_xticks(rows.MASK_BATCHES, map(str, rows.MASK_BATCHES))
    axes.set_title(f"Masks that hide 98 of 14 x 14 patches\n{title}", fontsize="medium")
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside right center")
    figure.savefig(path, dpi=120)


def plot_transform(tables: list[Result], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    if not tables:
        return
    height = 0.25 * max(len(table["rows"]) for table in tables) + 1.5
    figure = Figure(figsize=(10 * len(tables), height), layout="constrained")
    for axes, table in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
        measured = [row for row in table["rows"] if "median" in row]
        names, times = [row["name"] for row in measured], [1 / times_as_fast(table, r, rows.CLONE) for r in measured]
        colours = ["tab:blue" if name.startswith("gmml_aug") else "0.7" for name in names]
        axes.bar_label(axes.barh(names, times, color=colours), fmt="%.2f", padding=3, fontsize="small")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.margins(x=0.08, y=0.02)
        axes.set(title=table["case"], xlabel="time, as a multiple of clone() (lower is better)")
    figure.suptitle(f"Hiding half of each image (blue: gmml_aug)\n{title}", fontsize="medium")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
