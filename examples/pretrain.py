"""Pretrain a vision transformer by group masking, and see on few labels what that was worth.

    python examples/pretrain.py                                # scikit-learn's digits, two to four minutes on a CPU
    python examples/pretrain.py --data PATH --dry-run          # your photographs: the plan, and nothing is written
    python examples/pretrain.py --data PATH --output runs/x --minutes 60
    python examples/pretrain.py --data torchvision:CIFAR10     # a data set of torchvision
    accelerate launch --num_processes 2 examples/pretrain.py   # the same run on two devices, or on several machines
    torchrun --nproc_per_node 2 examples/pretrain.py           # the same; where there is no GPU, on two CPU processes

PATH is a folder of images, with or without a folder a class. Ctrl-C or SIGTERM ends a run after a checkpoint, a second
Ctrl-C at once; however it ended, the same command goes on from the last checkpoint, and one with more --epochs prolongs
the run. The run folder holds config.json, plan.txt, metrics.jsonl, checkpoint.safetensors, reconstructions/, lock
(while a process writes there), and at the end autoencoder.safetensors, encoder.safetensors with encoder.json
(``timm.create_model(**encoder.json)`` takes its weights), evaluation.json and report.html. Method and schedule follow
arXiv 2205.14986, sections 3 and 4.1; README.md here names the differences.
"""

from __future__ import annotations

import sys

from reference import runs
from reference.config import parse


def main(arguments: list[str] | None = None) -> None:
    call, command = parse(arguments, __doc__), runs.same_command(arguments)
    with (
        runs.one_sentence(command),
        runs.Lock(call.output) as lock,
        runs.Stop(call.output / "checkpoint.safetensors", command) as stop,
    ):
        from reference.pretraining import run

        run(call, lock, stop, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
