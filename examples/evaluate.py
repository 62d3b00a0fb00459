"""Compare a pretrained network with the same one from scratch, at several shares of the labels.

    python examples/evaluate.py runs/x                    # 1 %, 10 % and 100 % of the labels, by the run's protocol
    python examples/evaluate.py runs/x --data PATH        # on labelled images other than those it was pretrained on
    python examples/evaluate.py runs/x --labels 1 10 --draws 5 --steps 200 600 --epochs 10 20 --rates 1e-3 2e-3
    python examples/evaluate.py runs/x --dry-run          # what it would do, and how long that takes

pretrain.py ends in the same comparison, so that the two agree: rates, lengths and draws are the run's if not given
(three draws where it had --draws 0).
Full fine-tuning is the same code for both sides: AdamW, weight decay 0.05, a tenth of the steps of warm-up and then a
cosine, gradients clipped at 3, batches of 50, in bf16 if the run was pretrained so. Learning rate and length are
searched for each side and share of labels by itself, over the same grid; a grid of one needs no search:

1. Every one of ``--rates`` is tried at the first length: so many ``--epochs`` over the labelled images, at least so
   many ``--steps``.
2. The best rate and its two neighbours are tried at the next length, and so on.
3. The pair with the highest mean accuracy is taken. Where its rate is the first or last of ``--rates``, that is said.

The search draws labels with the seeds 100, 101, ... and scores on at most 2,000 training images without a label in that
draw (with 90 % of the labels or more, it trains on 90 %). The figures come from the seeds 0, 1, ...: each has a draw of
labels of its own, the same share of every class, and weights and an order of its own; they are accuracies on all
held-out images, which the search never sees. The regularisation of the linear probe is searched on the same draws.

Every fine-tuning is one line of evaluation.jsonl in the run folder and is not done again: what was killed goes on, and
commands for different shares may run side by side; the same command for all of them then puts the table together. It
is printed with a verdict, written with every figure to evaluation.json, and drawn in evaluation.png; report.html, the
run on one page, is renewed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from reference.config import Parser, add_options, checked, config_of_finished

FINETUNING = ("finetune_steps", "finetune_epochs")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run folder of pretrain.py")
    parser.add_argument("--data", help="labelled images, as for pretrain.py; those of the run if not given")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and how long it takes, and end")
    parser.add_argument(
        "--labels", type=float, nargs="+", help="percent; default those of 1, 10 and 100 that reach every class"
    )
    add_options(parser, ("draws", "rates", "search_draws", "layer_decay"), default="; default the run's")
    add_options(parser, FINETUNING, "finetune_", "; default the run's")
    parsed = vars(parser.parse_args(arguments))
    words = {name: value for name, value in parsed.items() if name not in FINETUNING and value is not None}
    given = checked(parser, words)
    given |= checked(parser, {name: parsed[name] for name in FINETUNING if name in parsed}, "finetune_")
    given.pop("data", None)
    config = replace(config_of_finished(parsed["run"]), **given)
    if not config.draws:  # the run compared nothing
        config = replace(config, draws=3)
    if len(config.finetune_steps) != len(config.finetune_epochs):
        parser.error(
            f"--epochs and --steps go together, one of each for a length; got {[*config.finetune_epochs]} and "
            f"{[*config.finetune_steps]}"
        )

    from reference.comparison import compare
    from reference.draws import reaching
    from reference.evaluation import evaluation_of
    from reference.finetuning import labels_of
    from reference.finished import opened
    from reference.plan import plan_of_evaluation
    from reference.runs import check_writable

    evaluation = evaluation_of(opened(parsed["run"], parsed["data"]))
    if parsed["labels"] is None:
        config = replace(config, labels=reaching(labels_of(evaluation.data.train), (1.0, 10.0, 100.0)))
    print(plan_of_evaluation(evaluation, config), flush=True)
    if parsed["dry_run"]:
        return
    check_writable(parsed["run"])
    try:
        compare(evaluation, config, "evaluate.py", sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print(f"\nstopped; what is finished is in {parsed['run']}/evaluation.jsonl, and the same command goes on")
        sys.exit(130)


if __name__ == "__main__":
    main()
