"""Measure the cost of state, resume and size with 100,000 shards, 10,000 skills, 10,000 rounds and 10 million draws.

    python benchmarks/state.py --work /tmp/state --shards /tmp/bench/shards [--out benchmarks/results/state.json]

Each figure comes from a process of its own. The shards of the two big manifests do not exist, because only the manifests are opened. The
long run reads real shards. `benchmarks/mixers.py --work DIR` leaves real shards in DIR/shards.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NUM_SHARDS, SAMPLES_PER_SHARD, NUM_SKILLS = 100_000, 10_000, 100
NUM_ROUNDS, ROUND_DRAWS = 10_000, 4096
LONG_DRAWS = 10_000_000
MANY_SKILLS, MANY_SKILLS_ROUNDS = 10_000, 8


def named_manifest(folder: Path, *, num_skills: int, num_shards: int) -> Path:
    """Write the manifest of a shard set with 10,000 samples in each shard. The shards do not exist."""
    from skillshard import canonical, storage

    if (folder / "manifest.json").exists():
        return folder
    per_skill = num_shards // num_skills
    none: dict[str, list[Any]] = {
        "number": [],
        "num_samples": [],
        "num_bytes": [],
        "digest": [],
        "index_digest": [],
        "keys_digest": [],
    }
    skills = []
    for skill in range(num_skills):
        digests = [canonical.digest(f"{skill}-{number}".encode()) for number in range(per_skill)]
        train = {
            "number": list(range(per_skill)),
            "num_samples": [SAMPLES_PER_SHARD] * per_skill,
            "num_bytes": [25_600_000 + number for number in range(per_skill)],
            "digest": digests,
            "index_digest": digests[::-1],
            "keys_digest": digests,
        }
        name = f"skill-{skill:05d}"
        skills.append({"name": name, "folder": name, "num_copies": 0, "train": train, "holdout": none})
    total = num_shards * SAMPLES_PER_SHARD
    manifest = {
        "schema": "skillshard/manifest/3",
        "made_from": {},
        "split": {"cut": "0" * 32, "also_held_out": [], "kept_in_train": []},
        "skills": skills,
        "num_rows": total,
        "num_train": total,
        "num_holdout": 0,
        "set_aside": {},
    }
    storage.write_bytes(folder / "manifest.json", canonical.to_json(manifest))
    return folder


def open_manifest(work: Path, shards: Path) -> dict[str, Any]:
    """Measure seconds and memory of opening the big manifest and of a mixer over the shard set."""
    from skillshard.mixing.mixer import Mixer
    from skillshard.policies import stratified
    from skillshard.shards.read import ShardSet

    before, started = _memory_mb(), time.perf_counter()
    opened = ShardSet.open(work / "big")
    with tempfile.TemporaryDirectory() as folder:
        mixer = Mixer(opened, stratified(), ledger=folder, round_draws=ROUND_DRAWS)
        state = len(json.dumps(mixer.state_dict()))
    return {"seconds": time.perf_counter() - started, "memory_mb": _memory_mb() - before, "state_bytes": state}


def many_skills(work: Path, shards: Path) -> dict[str, Any]:
    """Measure CPU-seconds and memory of a mixer of 10,000 skills with the identity graph, and of rounds that follow a report."""
    from skillshard.graph.skill_graph import SkillGraph
    from skillshard.mixing.mixer import Mixer
    from skillshard.policies import skill_it
    from skillshard.shards.read import ShardSet

    opened = ShardSet.open(work / "many-skills")
    memory_mb, started = _memory_mb(), time.process_time()
    graph = SkillGraph.identity(opened.skills)
    with tempfile.TemporaryDirectory() as folder:
        policy = skill_it(graph, eta=0.1)
        mixer = Mixer(opened, policy, ledger=folder, round_draws=ROUND_DRAWS, held_out=opened.skills)
        figures = {"open_cpu_s": time.process_time() - started, "open_memory_mb": _memory_mb() - memory_mb}
        decided: list[float] = []
        for number in range(MANY_SKILLS_ROUNDS):
            mixer.report(number, dict.fromkeys(mixer.skills, 1.0 + number), draw=number * ROUND_DRAWS)
            started = time.process_time()
            mixer.round(number)
            decided.append(time.process_time() - started)
        record_bytes = max(path.stat().st_size for path in Path(folder).rglob("rounds/*.json"))
    return {
        **figures,
        "round_cpu_s": sorted(decided)[len(decided) // 2],
        "round_record_bytes": record_bytes,
        "memory_mb": _memory_mb() - memory_mb,
    }


def make_ledger(work: Path, shards: Path) -> dict[str, Any]:
    """Write a ledger of 10,000 rounds and 10,000 observations with the weights of SKILL-IT."""
    mixer = _mixer(work / "ledger", shards)
    started, started_cpu = time.perf_counter(), time.process_time()
    for number in range(NUM_ROUNDS):
        mixer.report(number + 1, dict.fromkeys(mixer.skills, 1.0 + number % 7), draw=(number + 1) * ROUND_DRAWS)
        mixer.round(number)
    return {
        "seconds_per_round": (time.perf_counter() - started) / NUM_ROUNDS,
        "cpu_seconds_per_round": (time.process_time() - started_cpu) / NUM_ROUNDS,
        "state_bytes": len(json.dumps(mixer.state_dict())),
    }


def resume(work: Path, shards: Path) -> dict[str, Any]:
    """Measure the milliseconds from an opened shard set to the first resumed batch, at the head and in the middle of the ledger.

    The first batch is measured twice: with the digests of the shards, which takes as long as reading the shards, and with shards that the
    process has checked before.
    """
    from skillshard.shards.read import ShardSet

    opened = ShardSet.open(shards)
    figures = {}
    for name, draw in (("head", NUM_ROUNDS * ROUND_DRAWS - 5), ("middle", NUM_ROUNDS // 2 * ROUND_DRAWS + 77)):
        for case in ("first_batch_checking_shards_ms", "first_batch_ms"):
            started = time.perf_counter()
            mixer = _mixer(work / "ledger", opened)
            mixer.batch(draw, 256)
            figures[f"{name}_{case}"] = 1000 * (time.perf_counter() - started)
    state = _mixer(work / "ledger", opened).state_at(NUM_ROUNDS * ROUND_DRAWS).model_dump(by_alias=True)
    started, started_cpu = time.perf_counter(), time.process_time()
    mixer = _mixer(work / "ledger", opened)
    mixer.load_state_dict(state)
    mixer.batch(mixer.draw - 256, 256)
    return {
        **figures,
        "load_state_dict_ms": 1000 * (time.perf_counter() - started),
        "load_state_dict_cpu_ms": 1000 * (time.process_time() - started_cpu),
    }


def count(work: Path, shards: Path) -> dict[str, Any]:
    """Count the tokens of the real shards by bytes, in a single process."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from skillshard.execution import Backend
    from skillshard.shards.read import ShardSet
    from skillshard.shards.tokens import write_tokens

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    started = time.process_time()
    counts = write_tokens(ShardSet.open(shards), tokenizer, work / "tokens", backend=Backend(workers=1))
    return {"tokens": counts.manifest.num_train, "cpu_seconds": time.process_time() - started}


def resume_packed(work: Path, shards: Path) -> dict[str, Any]:
    """Measure the milliseconds from an opened shard set to the first packed block, at the head and in the middle of the ledger.

    As in `resume`, the second measurement is of shards that the process has checked before.
    """
    from skillshard.mixing.packing import PackedTokens
    from skillshard.shards.read import ShardSet
    from skillshard.shards.token_set import TokenSet

    opened, counts = ShardSet.open(shards), TokenSet.open(work / "tokens")
    # An estimate, because the exact number of tokens would need every round of the ledger.
    total = counts.manifest.num_train / opened.manifest.num_train * NUM_ROUNDS * ROUND_DRAWS
    figures = {}
    for name, share in (("head", 0.98), ("middle", 0.5)):
        for case in ("first_block_checking_shards_ms", "first_block_ms"):
            started = time.perf_counter()
            packed = PackedTokens(_mixer(work / "ledger", opened), counts, block_tokens=1024, separator=None)
            # Not by load_state_dict, which would set the later rounds aside.
            assert len(packed.batch(int(total * share) // 1024, 1)) == 1
            figures[f"{name}_{case}"] = 1000 * (time.perf_counter() - started)
    return figures


def long_run(work: Path, shards: Path) -> dict[str, Any]:
    """Measure the private memory, without mapped files, during 10 million draws."""
    with tempfile.TemporaryDirectory() as folder:
        mixer = _mixer(Path(folder), shards)
        memory = []
        for batch in mixer.batches(256):
            draw = int(batch.draw[-1]) + 1
            if draw % ROUND_DRAWS == 0:
                mixer.report(0, dict.fromkeys(mixer.skills, 1.0), draw=draw)
            if draw % (LONG_DRAWS // 10) < 256:
                memory.append(round(_memory_mb(), 1))
            if draw >= LONG_DRAWS:
                return {"private_mb_at_each_million": memory}
    raise AssertionError("the stream is endless")


def _mixer(ledger: Path, shards: Any) -> Any:
    from skillshard.graph.skill_graph import SkillGraph
    from skillshard.mixing.mixer import Mixer
    from skillshard.policies import skill_it
    from skillshard.shards.read import ShardSet

    opened = ShardSet.open(shards) if isinstance(shards, Path) else shards
    policy = skill_it(SkillGraph.identity(opened.skills), eta=0.1)
    return Mixer(opened, policy, ledger=ledger, round_draws=ROUND_DRAWS, initial_losses=False)


def _memory_mb() -> float:
    """Return the resident memory of this process without mapped files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


STEPS = {
    "open_manifest": open_manifest,
    "many_skills": many_skills,
    "make_ledger": make_ledger,
    "resume": resume,
    "count": count,
    "resume_packed": resume_packed,
    "long_run": long_run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shards", type=Path, required=True, help="a shard set that exists")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        figures = STEPS[arguments.step](arguments.work, arguments.shards)
        print(json.dumps({**figures, "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    named_manifest(arguments.work / "big", num_skills=NUM_SKILLS, num_shards=NUM_SHARDS)
    named_manifest(arguments.work / "many-skills", num_skills=MANY_SKILLS, num_shards=MANY_SKILLS)
    results = {}
    for step in STEPS:
        command = [
            sys.executable,
            __file__,
            "--work",
            str(arguments.work),
            "--shards",
            str(arguments.shards),
            "--step",
            step,
        ]
        results[step] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(step, json.dumps(results[step]))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
