"""Learning a graph from shards: the trials, the files that remain, and the refusals."""

import json
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation

import skillshard.graph.learn as learning
from skillshard import artefact
from skillshard.errors import GraphError, SkillshardError
from skillshard.execution import Backend
from skillshard.graph.derive import derive_again, rule_in
from skillshard.graph.edges import EdgeRule
from skillshard.graph.imported import import_graph
from skillshard.graph.learn import learn_graph
from skillshard.graph.plan import plan_trials
from skillshard.graph.skill_graph import GraphFile, SkillGraph, read_graph, write_graph
from skillshard.graph.trial_data import DrawnTexts, load_data
from skillshard.graph.trials import eval_steps, mixed_batches, trial_task
from skillshard.loss import LossKind
from skillshard.proxy.device import Compute
from skillshard.proxy.reading import Bytes
from skillshard.proxy.reading_choice import ReadingChoice
from skillshard.report import figures
from skillshard.shards.read import ShardSet
from tests.commands import skillshard, works
from tests.conftest import HERE, samples, tag_and_shard, write_corpus

RULE = EdgeRule("absolute", None, "curve", clamp=False, off_diagonal=None, drop_uncertain=False)


def learn(shards: ShardSet, out: Path, **changes: Any) -> GraphFile:
    """Learn a graph of three skills in a second or two."""
    arguments: dict[str, Any] = {
        "method": "leave-one-out",
        "steps": 4,
        "warmup_steps": 2,
        "batch_size": 6,
    }
    arguments |= {"eval_every": 2, "eval_samples": 5, "rule": RULE, "backend": HERE, "compute": Compute(device="cpu")}
    return learn_graph(shards, out, **with_reading({"window": 24, **arguments, **changes}))


def with_reading(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `learn_graph`, with a `ReadingChoice` for the arguments about the reading of texts."""
    names = {field.name for field in fields(ReadingChoice)}
    reading = ReadingChoice(**{name: value for name, value in arguments.items() if name in names})
    return {name: value for name, value in arguments.items() if name not in names} | {"reading": reading}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def learned(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learn a graph of two seeds. The trials lie beside the graph."""
    out = tmp_path_factory.mktemp("learned") / "graph.json"
    learn(shards, out, num_seeds=2)
    return out


def test_a_graph_holds_every_loss_of_every_run(learned: Path) -> None:
    graph = read_graph(learned)
    assert graph.learned is not None and graph.standard_errors is not None
    assert [tuple(run.trained_on) for run in graph.learned.runs if run.seed == 1] == [
        ("add", "carry", "negate"),
        ("carry", "negate"),
        ("add", "negate"),
        ("add", "carry"),
    ]
    assert all(np.array(run.losses).shape == (3, 3) and run.steps_taken == 4 for run in graph.learned.runs)
    starts = {(run.seed, tuple(run.losses[0])) for run in graph.learned.runs}
    assert len(starts) == 2, "all runs of a seed begin with its one warm start"
    assert (graph.learned.num_steps, graph.learned.num_samples) == (2 * 2 + 8 * 4, 2 * 2 * 6 + 2 * 4 * (6 + 3 * 4))
    assert SkillGraph.open(learned).edges.tolist() == graph.edges


def test_the_same_bytes_come_out_for_any_number_of_workers(learned: Path, shards: ShardSet, tmp_path: Path) -> None:
    learn(shards, tmp_path / "graph.json", num_seeds=2, backend=Backend(workers=2))
    assert (tmp_path / "graph.json").read_bytes() == learned.read_bytes()
    assert files(tmp_path / "graph.runs") == files(learned.with_suffix(".runs"))


@pytest.mark.parametrize("dies_at", [0, 1, 3])
def test_killed_after_any_run_it_goes_on_to_the_same_bytes_and_trains_nothing_twice(
    dies_at: int, learned: Path, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, ...]] = []

    def train_or_die(**arguments: Any) -> Any:
        if len(trained) == dies_at and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            raise KeyboardInterrupt
        trained.append((*arguments["trial"].trained_on, str(arguments["trial"].seed)))
        return trial_task(**arguments)

    monkeypatch.setattr(learning, "trial_task", train_or_die)
    with pytest.raises(KeyboardInterrupt):
        learn(shards, tmp_path / "graph.json", num_seeds=2)
    assert not (tmp_path / "graph.json").exists()
    learn(shards, tmp_path / "graph.json", num_seeds=2)
    assert (tmp_path / "graph.json").read_bytes() == learned.read_bytes()
    assert len(trained) == len(set(trained)) == 8


def test_more_seeds_and_other_methods_train_only_what_is_new(
    learned: Path, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, ...]] = []

    def counted(**arguments: Any) -> Any:
        trained.append(arguments["trial"].trained_on)
        return trial_task(**arguments)

    monkeypatch.setattr(learning, "trial_task", counted)
    trials = tmp_path / "runs"
    for name, num_seeds in (("one", 1), ("two", 2)):
        learn(shards, tmp_path / f"{name}.json", num_seeds=num_seeds, trials=trials)
    assert len(trained) == 8
    assert (tmp_path / "two.json").read_bytes() == learned.read_bytes()
    trained.clear()
    for method in ("linear", "brute-force"):
        learn(shards, tmp_path / f"{method}.json", method=method, trials=trials)
    assert len(trained) == 3 + 3, "brute force finds the runs on single skills that linear has made"
    trained.clear()
    learn(shards, tmp_path / "two.json", num_seeds=2, trials=trials)
    assert trained == []


def test_a_warm_start_that_was_removed_is_made_anew(learned: Path, shards: ShardSet, tmp_path: Path) -> None:
    learn(shards, tmp_path / "one.json", trials=tmp_path / "runs")
    for path in (tmp_path / "runs").glob("warm-*.npz"):
        path.unlink()
    learn(shards, tmp_path / "two.json", num_seeds=2, trials=tmp_path / "runs")
    assert (tmp_path / "two.json").read_bytes() == learned.read_bytes()


def test_what_a_killed_command_left_unfinished_is_made_or_removed(shards: ShardSet, tmp_path: Path) -> None:
    learn(shards, tmp_path / "graph.json")
    whole, folder = files(tmp_path), tmp_path / "graph.runs"
    # A kill between the file of a warm start and its record, before any trial.
    for record in (folder / "records").iterdir():
        record.unlink()
    (tmp_path / "graph.json").unlink()
    # A kill in the middle of a write, and a kill while steps are timed.
    (folder / ".warm-0.npz.77-0123abcd.part").touch()
    (tmp_path / ".graph.json.77-0123abcd.part").touch()
    (folder / "timing").mkdir()
    (folder / "timing" / "data-0.npz").touch()
    learn(shards, tmp_path / "graph.json")
    assert files(tmp_path) == whole and not (folder / "timing").exists()


def test_temporary_files_stay_while_another_command_trains_in_the_same_folder(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    part = tmp_path / "trials" / ".warm-0.npz.77-0123abcd.part"
    part.touch()
    with artefact.without_leftovers(str(tmp_path / "trials"), "timing", tmp_path / "other.json"):
        learn(shards, tmp_path / "graph.json", trials=tmp_path / "trials")
        assert part.exists()
    assert not part.exists()


def test_runs_share_the_samples_of_the_skills_that_they_share(learned: Path) -> None:
    data = load_data(str(next(learned.with_suffix(".runs").glob("data-*.npz"))), ("add", "carry", "negate"))
    full, without, *_ = plan_trials("leave-one-out", tuple(data.train), ("add",), batch_size=6, seeds=[0])
    whole, part = (next(mixed_batches(data.train, run, first_step=4)) for run in (full, without))
    assert np.array_equal(whole.tokens[2:], part.tokens)
    again = mixed_batches(data.train, full, first_step=3)
    next(again)
    assert np.array_equal(next(again).tokens, whole.tokens)


def test_only_the_texts_that_runs_draw_are_kept_and_the_draws_do_not_depend_on_it(
    shards: ShardSet, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"steps": 3, "warmup_steps": 0, "method": "linear", "window": 24}
    learn(shards, tmp_path / "graph.json", **options)
    (place,) = (tmp_path / "graph.runs").glob("data-*.npz")
    run = plan_trials("linear", ("add",), ("add",), batch_size=6, seeds=[0])[0]
    data = load_data(str(place), run.trained_on)
    assert set(data.train) == {"add"} and set(data.evaluation) == {"add", "carry", "negate"}
    drawn_texts = data.train["add"]
    assert len(drawn_texts) == len(shards.train["add"]) > 300 and len(drawn_texts.rows) <= 3 * 6
    assert drawn_texts.tokens.itemsize <= 2 and drawn_texts.targets.itemsize <= 2
    whole = Bytes(24).encode([sample.text for sample in shards.train["add"]])
    every = DrawnTexts.of([whole], np.arange(len(drawn_texts)), len(drawn_texts))
    for batch, full in zip(
        islice(mixed_batches(data.train, run, first_step=1), 3),
        mixed_batches({"add": every}, run, first_step=1),
        strict=False,
    ):
        assert np.array_equal(batch.tokens, full.tokens) and np.array_equal(batch.targets, full.targets)


def test_a_run_whose_losses_have_settled_ends_and_repeats_its_last_losses(shards: ShardSet, tmp_path: Path) -> None:
    graph = learn(shards, tmp_path / "graph.json", steps=12, lr=1e-9, settle=0.01, method="linear")
    assert graph.learned is not None
    assert {run.steps_taken for run in graph.learned.runs} == {6}
    assert all(
        len(run.losses) == len(eval_steps(12, 2)) and run.losses[3] == run.losses[-1] for run in graph.learned.runs
    )
    assert graph.learned.num_steps == 2 + 3 * 6


def test_targets_and_other_shards_are_columns(shards: ShardSet, tmp_path: Path) -> None:
    assert learn(shards, tmp_path / "target.json", targets=["carry"], method="brute-force").eval_skills == ["carry"]
    other = tag_and_shard(write_corpus(tmp_path / "corpus", samples(exam=60)), tmp_path / "other", holdout=0.3)
    graph = learn(shards, tmp_path / "other.json", eval_shards=other)
    assert (graph.train_skills, graph.eval_skills) == (["add", "carry", "negate"], ["exam"])
    with pytest.raises(GraphError, match=r"brute-force trains on the evaluation skills themselves, and exam cannot"):
        learn(shards, tmp_path / "no.json", eval_shards=other, method="brute-force")


def test_a_pretrained_proxy_is_known_by_its_content_and_needs_no_warm_start(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.adapters.hf_trainer import byte_tokenizer, tiny

    for name in ("here", "there"):
        tiny().save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    options: dict[str, Any] = {"method": "linear", "warmup_steps": 0, "trials": tmp_path / "runs"}
    graph = learn(shards, tmp_path / "here.json", proxy=str(tmp_path / "here"), **options)
    assert graph.learned is not None
    starts = {tuple(run.losses[0]) for run in graph.learned.runs}
    assert len(starts) == 1, "every run begins with the model as it is"
    assert all(run.losses[-1] != run.losses[0] for run in graph.learned.runs)

    def no_training(**arguments: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(learning, "trial_task", no_training)
    learn(shards, tmp_path / "there.json", proxy=str(tmp_path / "there"), **options)
    assert (tmp_path / "there.json").read_bytes() == (tmp_path / "here.json").read_bytes()


def test_too_much_work_is_refused_before_any(shards: ShardSet, tmp_path: Path) -> None:
    estimates: list[str] = []
    with pytest.raises(
        GraphError, match=r"4 trials, 8,002 steps in all: about .*, and `budget_s` allows 1 s\. Raise `budget_s`"
    ):
        learn(shards, tmp_path / "graph.json", steps=2_000, budget_s=1.0, on_estimate=estimates.append)
    # The batches of so many steps would take days to draw.
    with pytest.raises(GraphError, match=r"4 trials, 4,000,000,000,002 steps in all: about"):
        learn(
            shards, tmp_path / "graph.json", steps=10**12, eval_every=10**11, budget_s=1.0, on_estimate=estimates.append
        )
    assert estimates == [] and not [path for path in (tmp_path / "graph.runs").rglob("*") if path.is_file()]
    learn(shards, tmp_path / "graph.json", budget_s=600.0, on_estimate=estimates.append)
    assert len(estimates) == 1 and estimates[0].startswith("4 trials, 18 steps in all: about ")


def test_the_same_command_on_another_node_takes_no_timed_texts_away(
    learned: Path, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, measured = tmp_path / "trials", learning.timing_task

    def overtaken(data: str, **arguments: Any) -> Any:
        monkeypatch.setattr(learning, "timing_task", measured)
        learn(shards, tmp_path / "other.json", num_seeds=2, trials=trials)
        load_data.cache_clear()  # the other command has a memory of its own
        return measured(data, **arguments)

    monkeypatch.setattr(learning, "timing_task", overtaken)
    learn(shards, tmp_path / "graph.json", num_seeds=2, trials=trials)
    assert (tmp_path / "graph.json").read_bytes() == (tmp_path / "other.json").read_bytes() == learned.read_bytes()
    assert not [path for path in trials.rglob("*") if learning.TIMING in path.parts]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"targets": ["cary"]}, r"`targets` 'cary' \(did you mean 'carry'\?\): not a skill with held-out samples"),
        ({"for_steps": 5}, "`for_steps=5` is shorter than warm-up and trial, 2 \\+ 4 steps"),
        ({"eval_every": 5}, "`eval_every=5`: losses are measured every so many steps"),
        ({"eval_every": 0}, "`eval_every=0`: losses are measured every so many steps"),
        ({"budget_s": float("nan")}, "`budget_s=nan`: give seconds from 0"),
        (
            {"segment_at": ","},
            "`segment_at` reads a text as segments and predicts a word of answer. .* `answer_after='= '`",
        ),
        ({"answer_after": "=> "}, r"sample \d+ \('.*'\) of skill 'add' cannot be read: there is nothing behind '=> '"),
        (
            {"prompt_field": "meta.prompt"},
            r"skill 'add' cannot be read: .* metadata field 'meta.prompt' is missing, expected",
        ),
        ({"answer_after": "=", "prompt_field": "prompt"}, "both say where the prompt ends: give one of the two"),
        ({"lr_warmup": 7}, "`lr_warmup=7`: the learning rate would rise over more steps than the 6 of the training"),
        ({"num_seeds": 0}, "`num_seeds=0`: give 1 or more"),
        ({"settle": 0.0}, "`settle=0.0`: give nats above 0"),
        ({"proxy": "nowhere"}, "`proxy='nowhere'`: neither 'tiny' nor 'small' nor a directory"),
        (
            {"rule": EdgeRule("absolute", None, "end", clamp=True, off_diagonal=None, drop_uncertain=True)},
            "learn the graph from 2 seeds or more",
        ),
    ],
)
def test_what_makes_no_sense_gets_one_sentence(
    changes: dict[str, Any], sentence: str, shards: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(SkillshardError, match=sentence):
        learn(shards, tmp_path / "graph.json", **changes)
    assert not (tmp_path / "graph.json").exists()


def test_another_graph_is_not_overwritten(learned: Path, shards: ShardSet) -> None:
    before = learned.read_bytes()
    with pytest.raises(GraphError, match=r"holds another graph \(eval_steps: .*Choose another `out`"):
        learn(shards, learned, num_seeds=2, steps=6)
    assert learned.read_bytes() == before


def test_other_edges_are_derived_without_training(learned: Path) -> None:
    graph = read_graph(learned)
    assert graph.learned is not None and rule_in(graph.learned) == RULE
    assert derive_again(graph, rule=RULE, name="graph.json") == graph
    scaled = EdgeRule("relative", None, "end", clamp=True, off_diagonal=0.5, drop_uncertain=False)
    edges = np.array(derive_again(graph, rule=scaled, name="graph.json").edges)
    assert np.diag(edges).tolist() == [1.0] * 3
    assert edges.min() >= 0 and (edges - np.eye(3)).max() in (0.0, 0.5)


def test_the_verbs_of_the_command_line_share_one_name(learned: Path, shards: ShardSet, tmp_path: Path) -> None:
    common = ["--steps", 4, "--warmup", 2, "--batch-size", 6, "--window", 24, "--eval-every", 2, "--eval-samples", 5]
    common += ["--seeds", 2, "--method", "leave-one-out", "--workers", 1, "--device", "cpu", "--keep-negative"]
    ran = skillshard("graph", "learn", shards.root, *common, "--out", tmp_path / "graph.json")
    assert ran.code == 0, ran.err
    assert (tmp_path / "graph.json").read_bytes() == learned.read_bytes()
    for expected in ("Learned by leave-one-out, 2 seeds, warm-up 2 steps, 8 trials", "Cost: 36 steps, 168 samples."):
        assert expected in ran.out
    other = [
        "graph",
        "derive",
        learned,
        "--edges",
        "threshold:1.5",
        "--off-diagonal",
        0.5,
        "--out",
        tmp_path / "t.json",
    ]
    assert "edges threshold:1.5" in skillshard(*other).out
    assert skillshard(*other).code == 0, "the same again is no error"
    unreached = skillshard("graph", "derive", learned, "--edges", "threshold:0.001", "--out", tmp_path / "u.json").out
    assert "No trial brought a loss down to 0.001 nats" in unreached and "Nearly empty" not in unreached
    order = skillshard("graph", "derive", learned, "--direct", 0.2, "--off-diagonal", 0.5, "--out", tmp_path / "d.json")
    assert order.code == 0 and "direct edges of at least 0.2 of the largest" in order.out
    assert set(np.ravel(read_graph(tmp_path / "d.json").edges)) <= {0.0, 0.5, 1.0}
    assert (
        "direct 2.0: give a share"
        in skillshard("graph", "derive", learned, "--direct", 2, "--out", tmp_path / "x").sentence
    )
    other[other.index("threshold:1.5")] = "relative"
    assert "exists and holds something else" in skillshard(*other).sentence
    shown = skillshard("graph", "show", learned, "--pictures", tmp_path / "pictures")
    assert shown.code == 0 and "density" in shown.out and "One seed" not in shown.out
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"graph.png", "nodes.png"}


def test_the_pictures_of_a_large_graph_mark_the_edges_that_can_be_told_from_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "_save", lambda figure, place: drawn.append(figure))
    names, random = tuple(f"skill {number}" for number in range(27)), np.random.default_rng(3)
    edges, doubt = random.random((27, 27)) * (random.random((27, 27)) < 0.5), random.random((27, 27)) < 0.7
    figures.draw_heat_map(names, names, edges, tmp_path / "graph.png", doubt=doubt)
    figures.draw_heat_map(names, names, edges - 0.1, tmp_path / "graph.png")
    figures.draw_nodes(names, names, edges, tmp_path / "nodes.png", doubt=doubt)
    marked, unmarked, arrows = (figure.axes[0] for figure in drawn)
    (dots,) = marked.collections
    assert {(int(y), int(x)) for x, y in dots.get_offsets()} == {
        (int(row), int(column)) for row, column in np.argwhere((edges != 0) & ~doubt)
    }
    assert marked.images[0].norm.vmin == 0
    assert not unmarked.collections
    assert unmarked.images[0].norm.vmin == -unmarked.images[0].norm.vmax < 0
    between = np.where(np.eye(27, dtype=bool), 0, edges)
    strongest = np.argsort(-between, axis=None)[: figures.ARROWS]
    colours = [mark.arrow_patch.get_edgecolor()[:3] for mark in arrows.texts if isinstance(mark, Annotation)]
    grey = [colour for colour in colours if max(colour) - min(colour) < 0.01]
    assert len(colours) == figures.ARROWS
    assert len(grey) == doubt.ravel()[strongest].sum()
    assert "grey: could be 0" in arrows.get_title()


def test_the_matrix_is_printed_as_the_terminal_is_wide(
    learned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph = read_graph(learned)
    assert graph.standard_errors is not None
    edge, error = f"{graph.edges[0][0]:.3f}", f"±{graph.standard_errors[0][0]:.3f}"

    def printed(columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        return works("graph", "show", learned)

    assert f"{edge} {error}" in printed(120)
    narrow = printed(44)
    assert edge in narrow and error not in narrow and "too wide" not in narrow
    assert (
        "The matrix of 3 x 3 edges is too wide for this terminal: 'skillshard graph show FILE --pictures DIR' draws it."
        in printed(20)
    )


def test_the_numbers_of_a_small_heat_map_share_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "_save", lambda figure, place: drawn.append(figure))
    names = ("a", "b", "c")
    edges = np.array([[0.9, 0.004, 0.002], [0.0, 0.8, -0.001], [0.003, 0.001, 1.0]])
    for scale in (1, 100):
        figures.draw_heat_map(names, names, edges * scale, tmp_path / "graph.png")
    small, large = ([text.get_text() for text in figure.axes[0].texts] for figure in drawn)
    labels = [figure.axes[1].get_ylabel() for figure in drawn]
    assert small == ["900.00", "4.00", "2.00", "0", "800.00", "-1.00", "3.00", "1.00", "1000.00"]
    assert large[:3] == ["90.00", "0.40", "0.20"]
    assert labels == ["edge (blue: helps; numbers: times 0.001)", "edge (blue: helps)"]


def test_a_new_model_without_a_warm_start_gives_a_warning(shards: ShardSet, tmp_path: Path) -> None:
    ran = skillshard(
        "graph", "learn", shards.root, "--steps", 1, "--window", 24, "--workers", 1, "--out", tmp_path / "graph.json"
    )
    assert (
        ran.code == 0
        and "note: without --warmup, a new tiny model first learns what all texts have in common" in ran.err
    )
    assert "which of these edges are luck: 'skillshard graph learn --seeds 3' trains only what is missing." in ran.out


def test_matrices_from_elsewhere_become_graphs(tmp_path: Path) -> None:
    matrix = [[1.0, 0.5, 0.0], [-0.25, 1.0, 0.1]]
    np.save(tmp_path / "m.npy", np.array(matrix))
    (tmp_path / "m.csv").write_text("from,a,b,exam\na,1.0,0.5,0\nb,-0.25,1.0,0.1\n")
    (tmp_path / "m.json").write_text(
        json.dumps({"a": {"a": 1, "b": 0.5, "exam": 0}, "b": {"b": 1, "a": -0.25, "exam": 0.1}})
    )
    (tmp_path / "bare.json").write_text(json.dumps(matrix))
    (tmp_path / "rows.txt").write_text("a\nb\n")
    (tmp_path / "columns.txt").write_text("a\nb\nexam\n")
    names = ("--names", tmp_path / "rows.txt", "--eval-names", tmp_path / "columns.txt")
    for name, options in (("m.npy", names), ("m.csv", ()), ("m.json", ()), ("bare.json", names)):
        out = tmp_path / f"{name}.graph.json"
        ran = skillshard("graph", "import", tmp_path / name, *options, "--out", out)
        assert ran.code == 0, ran.err
        graph = SkillGraph.open(out)
        assert (graph.train_skills, graph.eval_skills, graph.edges.tolist()) == (("a", "b"), ("a", "b", "exam"), matrix)
        assert "Imported, not learned" in ran.out
    again = import_graph(tmp_path / "m.csv.graph.json")
    assert again.digest == SkillGraph.open(tmp_path / "m.npy.graph.json").digest


def test_an_imported_graph_of_skillshard_keeps_the_kind_of_its_losses(tmp_path: Path) -> None:
    graph = SkillGraph("ab", "ab", [[1.0, 0.5], [0.0, 1.0]], loss=LossKind(answer_after="="))
    graph.save(tmp_path / "graph.json")
    again = import_graph(tmp_path / "graph.json")
    assert (again.digest, again.loss) == (graph.digest, graph.loss)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("m.txt", b"1", "a matrix is read from .npy, .csv, .json"),
        ("m.npy", b"not numpy", "holds no matrix of numbers"),
        ("m.csv", b"x,a\na,one\n", "holds no matrix of numbers: line 2 has 'one' where a number is expected"),
        ("m.csv", b"a,b\n1,0.5\n0.5,1\n", "its lines begin with numbers under the name 'a'"),
        ("m.csv", b"x,a,b\na,1\n", "every line must have as many cells"),
        ("m.json", b"[[1.0]]", "does not name its rows: name them with --names"),
        ("m.json", b'{"a": {"a": 1}, "b": {"c": 1}}', "every row must name the same columns"),
        ("m.json", b"{", "holds no matrix of numbers"),
        ("m.json", b"5", "a list of rows or an object is expected, got '5'"),
        ("m.json", b'"abc"', "a list of rows or an object is expected, got 'abc'"),
        ("m.json", b'["12", "34"]', "row 0 is no list of numbers: '12'"),
        ("m.json", b'[["1"]]', """row 0 is no list of numbers: "['1']\""""),
        ("m.json", b'{"a": {"a": "1"}}', """row 'a' is no list of numbers: "['1']\""""),
        ("m.json", b'{"a": "b"}', "an object must be like"),
        ("m.json", b'{"edges": [[1.0]]}', "'train_skills' must be a list of names beside 'edges'"),
        (
            "m.json",
            b'{"schema": "skillshard/graph/2"}',
            "is no graph of skillshard (schemas/graph-2.json): train_skills:",
        ),
        ("m.json", b"[" * 100_000 + b"]" * 100_000, "its lists are nested too deeply"),
        ("m.json", b"[[1" + b"0" * 400 + b"]]", "int too large to convert to float"),
        ("m.csv", b"", "holds no matrix of numbers"),
    ],
)
def test_what_is_no_matrix_is_refused(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    ran = skillshard("graph", "import", tmp_path / name, "--out", tmp_path / "graph.json")
    assert ran.code == 1 and sentence in ran.sentence
    assert not (tmp_path / "graph.json").exists()


def test_a_graph_that_was_given_has_no_losses_to_derive_from(tmp_path: Path) -> None:
    SkillGraph.identity(("a", "b")).save(tmp_path / "graph.json")
    ran = skillshard("graph", "derive", tmp_path / "graph.json", "--out", tmp_path / "other.json")
    assert "was imported, not learned" in ran.sentence


def test_a_written_graph_comes_back(learned: Path, tmp_path: Path) -> None:
    write_graph(read_graph(learned), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == learned.read_bytes()
