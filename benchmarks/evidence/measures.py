"""Make tables from records: speed, quality and cost of each method, and the significance of the difference to the baseline."""

import json
import math
import statistics
from bisect import bisect
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.methods import GRAPH_SEEDS, METHODS, graph_of, graph_seeds, read_at
from benchmarks.evidence.settings import Setting, sized
from benchmarks.evidence.training import task_key
from skillshard.comparison.significance import holm
from skillshard.comparison.verdict import EVALUATION_COST


def summary(
    name: str, seeds: list[int], work: Path, changes: dict[str, Any], earlier: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Summarise a setting: every method with a record, on the seeds that the method shares with the baseline, or on all seeds.

    Args:
        earlier: Entry of the setting in a former table, with trainings whose records are not in `work`.

    Raises:
        ValueError: the former table is of another setting.
    """
    setting = sized(name, **changes)
    records, graphs = _all_records(setting, name, seeds, work)
    rows = _rows_of(earlier, setting, name)
    for method, of_seed in records.items():
        for seed, record in of_seed.items():
            led_by = [graphs[graph_of(method)][number] for number in graph_seeds(method, seed)]
            rows.setdefault(method, {})[seed] = measures(setting, method, record, led_by)
    shared = rows.get(setting.baseline, dict.fromkeys(seeds))
    trainings = {
        method: {seed: rows[method][seed] for seed in seeds if seed in rows[method] and seed in shared}
        for method in setting.methods
        if method in rows
    }
    if not any(trainings.values()):
        return {}
    return {
        "setting": vars(setting),
        "seeds": sorted(set().union(*trainings.values())),
        "graphs": {
            **(earlier["graphs"] if earlier else {}),
            **{
                method: _graphs(list(of_seed.values()), setting)
                for method, of_seed in graphs.items()
                if _seeds_needed(method, trainings) <= of_seed.keys()
            },
        },
        "methods": {
            method: {
                "seeds": list(rows),
                "by_seed": list(rows.values()),
                "against_baseline": _against(trainings, method, setting.baseline),
                **(
                    {"against_chain": _against(trainings, method, "chain")}
                    if graph_of(method) and METHODS[method].is_skill_it
                    else {}
                ),
            }
            for method, rows in trainings.items()
            if rows
        },
    }


def _all_records(
    setting: Setting, name: str, seeds: list[int], work: Path
) -> tuple[dict[str, dict[int, dict[str, Any]]], dict[str | None, dict[int, dict[str, Any]]]]:
    """Read the trainings by method and seed, and the graphs of the trainings by kind and seed."""
    trainings = {
        method: records for method in setting.methods if (records := _records(work, "train", name, method, seeds))
    }
    graphs = {
        kind: _records(work, "graph", name, kind, sorted({*seeds, *GRAPH_SEEDS}))
        for kind in dict.fromkeys(map(graph_of, trainings))
        if kind is not None
    }
    return trainings, graphs


def _rows_of(earlier: dict[str, Any] | None, setting: Setting, name: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the rows of a former table, by method and seed."""
    if earlier is None:
        return {}
    # A table from the time before a field existed has the default of the field.
    defaults = {field.name: field.default for field in fields(Setting) if field.default is not MISSING}
    now, then = (
        {key: value for key, value in facts.items() if key != "methods"}
        for facts in (json.loads(json.dumps(vars(setting))), {**defaults, **earlier["setting"]})
    )
    if now != then:
        differ = ", ".join(sorted(key for key in now | then if now.get(key) != then.get(key)))
        raise ValueError(f"{name}: the former table has another {differ}; its trainings cannot stand beside these")
    return {
        method: dict(zip(entry["seeds"], entry["by_seed"], strict=True)) for method, entry in earlier["methods"].items()
    }


def _seeds_needed(graph: str, trainings: dict[str, dict[int, dict[str, Any]]]) -> set[int]:
    """Return the seeds of the graphs of a kind that the trainings used."""
    return {
        number
        for method, rows in trainings.items()
        if graph_of(method) == graph
        for seed in rows
        for number in graph_seeds(method, seed)
    }


def _against(trainings: dict[str, dict[int, dict[str, Any]]], method: str, other: str) -> dict[str, Any] | None:
    """Compare two methods on the seeds that both have, or return None without a shared seed."""
    shared = [seed for seed in trainings[method] if seed in trainings.get(other, {})]
    ours, theirs = ([trainings[name][seed] for seed in shared] for name in (method, other))
    return compared(ours, theirs) | {"num_seeds": len(shared)} if shared else None


def _records(work: Path, kind: str, name: str, method: str, seeds: list[int]) -> dict[int, dict[str, Any]]:
    """Read the records of a method, by seed. Seeds without a record are left out."""
    places = {seed: work / "records" / f"{task_key(kind, name, seed, method)}.json" for seed in seeds}
    return {seed: json.loads(place.read_text()) for seed, place in places.items() if place.exists()}


def measures(setting: Setting, method: str, record: dict[str, Any], graphs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a training.

    Returns:
        steps_to_target (None for never), area (mean over the evaluations of the mean loss over the measured skills), final_loss,
        accuracy, num_steps (fewer than the steps of the setting for a training that settled), and overhead_steps: the cost in training
        steps of the graph, and of the evaluations if the method reads losses.
    """
    means = [statistics.mean(losses.values()) for losses in record["losses"]][1:]
    num_steps = setting.eval_every * len(means)
    means += [means[-1]] * (setting.steps // setting.eval_every - len(means))  # a training that settled keeps its loss
    reached = (
        None
        if setting.target_loss is None
        else next((number for number, mean in enumerate(means, 1) if mean < setting.target_loss), None)
    )
    steps = setting.eval_every * (len(means) if reached is None else reached)
    per_evaluation = EVALUATION_COST * len(record["accuracy"]) * setting.eval_samples
    overhead = sum(graph["num_samples"] + graph["num_evaluations"] * per_evaluation for graph in graphs)
    if record["reads_losses"]:
        read_steps = read_at(setting, method, len(setting.trained) or len(record["accuracy"]))
        overhead += bisect(read_steps, steps) * per_evaluation
    return {
        "steps_to_target": None if reached is None else steps,
        "area": round(statistics.mean(means), 5),
        "final_loss": round(means[-1], 5),
        "accuracy": round(record["mean_accuracy"], 5),
        "accuracies": {skill: round(share, 4) for skill, share in record["accuracy"].items()},
        "final_losses": {skill: round(loss, 4) for skill, loss in record["losses"][-1].items()},
        "num_steps": num_steps,
        "overhead_steps": round(overhead / setting.batch_size),
        "cpu_s": round(record["cpu_s"], 1),
    }


def compared(rows: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare two methods, paired by seed: differences, number of lower seeds, and p of Wilcoxon's two-sided signed-rank test.

    A training that never reaches the target counts as longer than every training that reaches the target. Below 5 seeds p is None, because
    no p of the test can be small.
    """
    comparisons = {}
    for measure in ("area", "final_loss", "steps_to_target"):
        ours, theirs = (np.array([_number(row[measure]) for row in group]) for group in (rows, baseline))
        if measure == "steps_to_target" and not (np.isfinite(ours).any() or np.isfinite(theirs).any()):
            continue
        with np.errstate(invalid="ignore"):
            differences = np.where(ours == theirs, 0.0, ours - theirs)
        comparisons[measure] = {
            "mean_difference": round(float(differences.mean()), 5) if np.isfinite(differences).all() else None,
            "lower": int((differences < 0).sum()),
            "higher": int((differences > 0).sum()),
            "p": _p(differences),
        }
    return comparisons


def pooled(summaries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Compare each method with stratified over all LEGO settings whose measured skills are the trained skills.

    Returns:
        by method: relative differences of area, paired by setting and seed. num_pairs, num_settings, mean_difference (-0.1 is a tenth
        lower), lower, p (as in `compared`), p_holm (p corrected for the number of compared methods).
    """
    settings = [figures for figures in summaries.values() if _is_pretraining(figures["setting"])]
    methods = dict.fromkeys(method for figures in settings for method in figures["methods"] if method != "stratified")
    pairs = {
        method: [areas for figures in settings if (areas := _relative(figures, method)).size] for method in methods
    }
    differences = {method: np.concatenate(of_method) for method, of_method in pairs.items() if of_method}
    ps = {method: _p(values) for method, values in differences.items()}
    corrected = holm({method: p for method, p in ps.items() if p is not None})
    return {
        method: {
            "num_pairs": values.size,
            "num_settings": len(pairs[method]),
            "mean_difference": round(float(values.mean()), 4),
            "lower": int((values < 0).sum()),
            "p": ps[method],
            "p_holm": float(f"{corrected[method]:.4g}") if method in corrected else None,
        }
        for method, values in differences.items()
    }


def _is_pretraining(setting: dict[str, Any]) -> bool:
    return bool(
        setting["corpus"].startswith("lego")
        and setting["baseline"] == "stratified"
        and list(setting["trained"]) == list(setting["measured"])
        and not setting["measured_k"]
    )


def _relative(figures: dict[str, Any], method: str) -> np.ndarray:
    """Return the relative differences of a method's areas to the baseline's areas, on the seeds that both have."""
    areas = [
        {seed: row["area"] for seed, row in zip(entry["seeds"], entry["by_seed"], strict=True)}
        for name in (method, figures["setting"]["baseline"])
        if (entry := figures["methods"].get(name))
    ]
    if len(areas) < 2:
        return np.zeros(0)
    ours, theirs = areas
    return np.array([ours[seed] / theirs[seed] - 1 for seed in ours if seed in theirs])


def _p(differences: np.ndarray) -> float | None:
    from scipy.stats import wilcoxon

    if len(differences) < 5 or not differences.any():
        return None
    largest = np.abs(differences[np.isfinite(differences)]).max(initial=0.0) + 1.0
    return float(f"{wilcoxon(np.clip(differences, -largest, largest)).pvalue:.4g}")


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)


def _graphs(records: list[dict[str, Any]], setting: Setting) -> dict[str, Any]:
    edges = np.array([record["edges"] for record in records])
    figures = {
        "num_steps": records[0]["num_steps"],
        "share_of_a_training": round(records[0]["num_samples"] / (setting.steps * setting.batch_size), 2),
        "mean_edges": edges.mean(axis=0).round(3).tolist(),
    }
    if len(records) > 1:
        figures["standard_errors"] = (edges.std(axis=0, ddof=1) / math.sqrt(len(records))).round(3).tolist()
    if edges.shape[1] == edges.shape[2] and not setting.is_text:
        figures["forward_share"] = [forward_share(matrix) for matrix in edges]
    return figures


def forward_share(edges: np.ndarray) -> float | None:
    """Return the share of the weight of positive edges between skills that leads from an earlier to a later skill of the chain.

    >>> forward_share(np.array([[1.0, 0.3], [0.1, 1.0]]))
    0.75
    """
    positive = np.maximum(edges, 0) * ~np.eye(len(edges), dtype=bool)
    return round(float(np.triu(positive).sum() / positive.sum()), 3) if positive.sum() > 0 else None


def print_setting(name: str, figures: dict[str, Any]) -> None:
    target = figures["setting"]["target_loss"]
    print(f"\n### {name}: {figures['setting']['steps']:,} steps, seeds {', '.join(map(str, figures['seeds']))}\n")
    for method, graph in figures["graphs"].items():
        forward = f", forward share {graph['forward_share']}" if "forward_share" in graph else ""
        print(
            f"A {method} graph costs {graph['num_steps']:,} steps, {graph['share_of_a_training']:.2f} of a training{forward}."
        )
    print(
        f"\n| method | seeds | steps to {target or 'a target'} (median; least to most; never) | with its overhead | area (mean ± s.d.) | against "
        f"{figures['setting']['baseline']}: mean; lower on | p | final loss | accuracy |\n|---|---:|---|---:|---|---|---:|---:|---:|"
    )
    for method, entry in figures["methods"].items():
        print(_row(method, entry, has_target=target is not None))
    for method, entry in figures["methods"].items():
        if against := entry.get("against_chain"):
            print(
                f"\nThe {method} graph against the true graph: area {against['area']['mean_difference']:+.4f}, higher on "
                f"{against['area']['higher']} of {against['num_seeds']} seeds, p {against['area']['p']}."
            )


def print_pooled(comparisons: dict[str, dict[str, Any]]) -> None:
    print("\n### all LEGO settings together: area against stratified, by setting and seed\n")
    print(
        "| method | settings | pairs | mean difference | lower on | p | p, Holm |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for method, entry in comparisons.items():
        ps = ("" if p is None else f"{p:.4f}" if p >= 0.0001 else "<.0001" for p in (entry["p"], entry["p_holm"]))
        print(
            f"| {method} | {entry['num_settings']} | {entry['num_pairs']} | {100 * entry['mean_difference']:+.1f} % | {entry['lower']} | {' | '.join(ps)} |"
        )


def _row(method: str, entry: dict[str, Any], *, has_target: bool) -> str:
    rows = entry["by_seed"]
    reached = sorted(_number(row["steps_to_target"]) for row in rows)
    with_overhead = sorted(_number(row["steps_to_target"]) + row["overhead_steps"] for row in rows)
    areas = [row["area"] for row in rows]
    spread = f" ± {statistics.stdev(areas):.4f}" if len(rows) > 1 else ""
    against = (entry["against_baseline"] or {}).get("area")
    never = sum(steps == math.inf for steps in reached)
    cells = [
        method,
        f"{len(rows)}",
        f"{_steps(statistics.median(reached))}; {_steps(reached[0])} to {_steps(reached[-1])}; {never}"
        if has_target
        else "",
        _steps(statistics.median(with_overhead)) if has_target else "",
        f"{statistics.mean(areas):.4f}{spread}",
        f"{against['mean_difference']:+.4f}; {against['lower']} of {len(rows)}" if against else "",
        f"{against['p']:.3f}" if against and against["p"] is not None else "",
        f"{statistics.mean(row['final_loss'] for row in rows):.4f}",
        f"{statistics.mean(row['accuracy'] for row in rows):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _steps(number: float) -> str:
    return "never" if number == math.inf else f"{number:,.0f}"
