"""Measure whether SKILL-IT helps, and its cost, by the comparisons of the paper and by further comparisons.

    python -m benchmarks.skillit run --work /tmp/evidence --settings "shuffled LEGO k=3" --seeds 0 1 2 3
    python -m benchmarks.skillit table --work /tmp/evidence --out benchmarks/results/skillit.json --pictures benchmarks/results

A second `run` continues the first. `table` shows each method on the seeds that the method shares with the baseline. `--earlier FILE` adds
the trainings of a former table whose records have left the folder. The settings are in `evidence/settings.py`, the methods in
`evidence/methods.py`. `--device cuda --size 125m --lr 5e-5` trains a model of the paper's size at the paper's rate. Use another folder
for other steps, sizes, precisions or rates. Settings of real text need `--corpora FOLDER` with `sources/*.jsonl` (documents, `meta.source`) and
`instructions/*.jsonl` (instructions with answers, `meta.category`), plain or compressed.
"""

import argparse
import json
from pathlib import Path

from benchmarks.evidence.measures import pooled, print_pooled, print_setting, summary
from benchmarks.evidence.pictures import draw_setting
from benchmarks.evidence.settings import ROUNDS, SETTINGS, SIZES
from benchmarks.evidence.training import run_all
from benchmarks.mixers import machine
from skillshard.errors import ProxyError, did_you_mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "table"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--corpora", type=Path, default=None, help="folder of the real texts, CORPUS/*.jsonl; for settings of real text"
    )
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--methods", nargs="+", default=None, help="run only these methods")
    parser.add_argument("--steps", type=int, default=None, help="steps of every training, in place of the setting's")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny", help="size of the model")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="data type of the matrix products of the model",
    )
    parser.add_argument("--lr", type=float, default=None, help="highest learning rate, in place of the setting's")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the tables")
    parser.add_argument(
        "--earlier", type=Path, default=None, help="JSON file of a former table, which the new table continues"
    )
    parser.add_argument("--pictures", type=Path, default=None, help="folder of pictures")
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.steps < ROUNDS:
        parser.error(
            f"--steps {arguments.steps}: give {ROUNDS} or more, because a training has {ROUNDS} rounds of at least a step."
        )
    known = list(dict.fromkeys(method for name in arguments.settings for method in SETTINGS[name].methods))
    for method in arguments.methods or ():
        if method not in known:
            parser.error(f"--methods {method!r}{did_you_mean(method, known)}: these settings have {', '.join(known)}")
    unread = [
        name
        for name in arguments.settings
        if SETTINGS[name].is_text and not (arguments.corpora and (arguments.corpora / SETTINGS[name].corpus).is_dir())
    ]
    if arguments.verb == "run" and unread:
        folder = "no --corpora was given" if arguments.corpora is None else f"--corpora {arguments.corpora} has none"
        parser.error(
            f"the setting {unread[0]!r} reads real text from a folder {SETTINGS[unread[0]].corpus!r}, and {folder}. Give the folder of the "
            "corpora, or leave such settings out with --settings."
        )
    chosen = {
        "steps": arguments.steps,
        "size": arguments.size,
        "lr": arguments.lr,
        "precision": arguments.precision,
    }
    changes = {name: value for name, value in chosen.items() if value is not None}
    if arguments.verb == "run":
        from skillshard.proxy.device import resolve_device  # the command table does without torch

        try:
            device = resolve_device(arguments.device)
        except ProxyError as error:
            raise SystemExit(f"error: {error}") from None
        run_all(
            arguments.settings,
            arguments.seeds,
            arguments.methods,
            arguments.work,
            workers=arguments.workers,
            device=device,
            changes=changes,
            corpora=arguments.corpora,
        )
    earlier = {"settings": {}} if arguments.earlier is None else json.loads(arguments.earlier.read_text())
    summaries = {
        name: figures
        for name in arguments.settings
        if (figures := summary(name, arguments.seeds, arguments.work, changes, earlier["settings"].get(name)))
    }
    for name, figures in summaries.items():
        print_setting(name, figures)
        if arguments.pictures is not None:
            draw_setting(name, figures["seeds"][0], arguments.work, arguments.pictures, changes)
    together = pooled(summaries)
    if together:
        print_pooled(together)
    if arguments.out is not None:
        machines = [*(record for record in earlier.get("machines", []) if record != machine()), machine()]
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(
            json.dumps({"machines": machines, "settings": summaries, "together": together}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
