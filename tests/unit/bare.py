"""Run skillshard without extras: the core must work, and every other feature must name its extra.

`python tests/unit/bare.py FOLDER [MODULE ...]` blocks the given modules, so that an environment with extras behaves like an environment
without extras. The script imports nothing of the tests, so that the script also runs in an environment that holds skillshard alone.
The output is a line of JSON: command or import -> [exit code, last line of its errors].
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

WORKS = [
    "peek C",
    "tag metadata C --field meta.skill --out T",
    "tag from labels.csv C --out F",
    "tag function labelled:skill_of C --out G",
    "regroup T --map names.json --out renamed",
    "regroup T --min-share 0.2 --rest other --out few",
    "regroup T renamed --out both",
    "shard C --tags T --out S --shard-size 20KB --holdout 0.1",
    "inspect T",
    "inspect S",
    "verify T",
    "verify S",
    "run pipeline.yaml --dry-run",
    "mix S --policy stratified --draws 200 --out ids.jsonl",
    "mix S --policy proportional --draws 200 --ledger run --out more.jsonl",
    "export S --format parquet --out exported --workers 1",
    "export S --format jsonl.gz --policy stratified --draws 200 --out mixed --workers 1",
    "export S --format datasets --split holdout --out held-out --workers 1",
    "inspect run",
    "verify run",
    "at run --draw 3",
    "seen run --id add-003",
    "continue run --draw 100 --out run2",
    "replay run",
    "diff run run",
    "steer run --freeze --why slow",
    "report run --out report.html",
    "graph import matrix.csv --out graph.json",
    "weights S --policy skill_it --eta 0.2 --graph graph.json --out weights.json",
    "graph show graph.json",
    "synth lego --k 3 --samples 100 --out L",
    "synth addition --k 2 --samples 100 --out A",
]
NEEDS = [
    "tag embedding C --skills 2 --out X",
    "tag embedding C --skills 2 --encoder all-MiniLM-L6-v2 --out X",
    "tag loss C --skills 2 --out X",
    "tag metadata C --field meta.skill --ray-address local --out X",
    "tag metadata hf:openai/gsm8k/main --field x --out X",
    "tag metadata C --field meta.skill --out s3://bucket/X",
    "tag classifier C --model C --out X",
    "shard C --tags T --ray-address local --out X",
    "inspect T --against meta.skill",
    "inspect T --pictures X",
    "graph learn S --steps 2 --out X/graph.json",
    "graph show graph.json --pictures X",
    "compare S --policy stratified --policy loss_order:eta=1 --seeds 2 --steps 2 --out X",
    "compare run run2 --baseline run --out X",
    "fit runs.csv --out X/fit.json",
    "fit runs.csv --method regmix --out X/fit.json",
    "tokens S --tokenizer tokenizer.json --out X",
    "demo --out X",
]
IMPORTS = [
    "skillshard.torch",
    "skillshard.hf",
    "skillshard.lightning",
    "skillshard.webdataset",
    "skillshard.proxy.model",
]


PIPELINE = """
corpus: C
out: P
tag: {metadata: {field: meta.skill}}
shard: {}
"""


class Blocked:
    """A finder that stands before all other finders, and refuses the blocked modules."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = frozenset(modules)

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> None:
        if name.partition(".")[0] in self.modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def write_inputs() -> None:
    """Write a corpus of two skills, a map, a matrix and finished runs into the working directory."""
    Path("C").mkdir()
    records = [
        {"id": f"{skill}-{number:03d}", "text": f"{skill} number {number}", "meta": {"skill": skill}}
        for number in range(60)
        for skill in ("add", "carry")
    ]
    Path("C/0.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    labels = [f"{record['id']},{record['text'].split()[0]}" for record in records]
    Path("labels.csv").write_text("\n".join(["id,skill", *labels]) + "\n")
    Path("labelled.py").write_text("def skill_of(sample):\n    return sample.meta['skill']\n")
    Path("pipeline.yaml").write_text(PIPELINE)
    Path("names.json").write_text(json.dumps({"add": "sum"}))
    Path("matrix.csv").write_text(",add,carry\nadd,1,0.5\ncarry,0,1\n")
    Path("tokenizer.json").write_text("{}")
    runs = ["weights/add,weights/carry,losses/add,losses/carry", "1,0,1.1,2.9", "0.5,0.5,1.5,1.7", "0,1,2.7,1.2"]
    Path("runs.csv").write_text("\n".join([*runs, "0.7,0.3,1.3,2.0"]) + "\n")


def outcome(command: str) -> tuple[int, str]:
    """Run a verb in this process."""
    from skillshard.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(command.split())
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, (err.getvalue().strip().splitlines() or [""])[-1]


def import_outcome(module: str) -> tuple[int, str]:
    from skillshard.errors import ExtraError

    try:
        import_module(module)
    except ExtraError as error:
        return 1, str(error)
    return 0, ""


def mix_by_hand() -> None:
    """Run a live mixer: a report between two rounds, and a resume that gives the same rest."""
    import skillshard as ss

    shards = ss.ShardSet.open("S")
    policy = ss.policies.chain(ss.policies.odm(warmup_steps=0), ss.policies.floor(0.01))
    mixer = ss.Mixer(shards, policy, ledger="live", round_draws=32, step_draws=8, lag=0)
    stream = iter(mixer)
    texts = [next(stream).text for _ in range(32)]
    mixer.report(4, {"add": 2.0, "carry": 1.0})
    state = mixer.state_dict(step=4)
    rest = [next(stream).text for _ in range(16)]
    assert len({*texts, *rest}) > 40
    again = ss.Mixer(shards, policy, ledger="live", round_draws=32, step_draws=8, lag=0)
    again.load_state_dict(state)
    stream = iter(again)
    assert [next(stream).text for _ in range(16)] == rest


def main(folder: str, *blocked: str) -> None:
    sys.meta_path.insert(0, Blocked(blocked))  # type: ignore[arg-type]  # a finder needs find_spec alone
    os.chdir(folder)
    write_inputs()
    outcomes = {command: outcome(command) for command in WORKS}
    mix_by_hand()
    outcomes |= {command: outcome(command) for command in NEEDS}
    outcomes |= {module: import_outcome(module) for module in IMPORTS}
    assert not Path("X").exists(), "a command without its extra wrote to --out"
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
