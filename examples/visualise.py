"""See what a pretrained network does: pictures in its run folder.

    python examples/visualise.py RUN                      # a finished run folder of pretrain.py
    python examples/visualise.py RUN --patches 2,3 6,6    # attention of other patches: row,column, counted from 1

It draws RUN/reconstructions.png, what the network makes of corrupted held-out images; RUN/blocks.png, the image decoded
from each block's output, which shows where alien content fades and native content comes back (arXiv 2205.14986);
and RUN/attention.png, where the last block looks from chosen patches. RUN/report.html then shows them too.
"""

from __future__ import annotations

from pathlib import Path

from reference.config import Parser, config_of_finished


def patch(text: str) -> tuple[int, int]:
    row, column = text.split(",")
    return int(row) - 1, int(column) - 1


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run folder of pretrain.py")
    parser.add_argument("--data", help="other images than the run's, named as in pretrain.py")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and of the masks; default 0")
    parser.add_argument(
        "--patches", type=patch, nargs="+", metavar="ROW,COLUMN", help="counted from 1; four if not given"
    )
    args = parser.parse_args(arguments)
    run: Path = args.run
    config = config_of_finished(run)
    rows = config.image_size // config.patch_size
    near, far = rows // 4, rows - 1 - rows // 4
    patches = args.patches or sorted({(row, column) for row in (near, far) for column in (near, far)})
    for row, column in patches:
        if not (0 <= row < rows and 0 <= column < rows):
            parser.error(f"--patches takes rows and columns from 1 to {rows}; got {row + 1},{column + 1}")

    from accelerate import Accelerator
    from reference.finished import opened
    from reference.model import build, masks
    from reference.pictures import draw_attention, draw_blocks, draw_reconstructions, held_out
    from reference.report import write_report
    from reference.runs import check_writable

    check_writable(run)
    accelerator = Accelerator()
    finished = opened(run, args.data)
    data = finished.data
    if len(held_out(data)[0]) < 3:
        raise SystemExit(f"{data.name} has fewer than three {held_out(data)[1]}: an image, its donor and a third one")
    model = build(config, data.channels)[0]
    model.load_state_dict(finished.weights)
    model.to(finished.device).eval()
    half, seed = (0.5, 0.5), args.seed
    drawn = []
    if config.method == "gmml":
        corrupt = masks(config, ratio=half, seed=seed)
        draw_reconstructions(config, model, data, corrupt, run / "reconstructions.png", accelerator)
        draw_blocks(config, model, data, masks(config, ratio=half, seed=seed, fill="alien"), run / "blocks.png")
        drawn += ["reconstructions", "blocks"]
    else:
        print(f"attention alone is drawn: of a run with --method {config.method} the encoder is kept, and no decoder")
    if hasattr(model.encoder.blocks[-1], "attn"):
        draw_attention(model, data, patches, seed, run / "attention.png")
        drawn.append("attention")
    else:
        print(f"attention is not drawn: the last block of {config.model} is {type(model.encoder.blocks[-1])}")
    for name in drawn:
        print(f"drew {run / name}.png")
    write_report(run)
    print(f"put them into {run}/report.html")


if __name__ == "__main__":
    main()
