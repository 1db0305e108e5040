"""Comparisons of policies: trials on disk, verdicts, errors, and finished runs."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from skillshard import taggers
from skillshard.comparison.compare import compare_policies, compared
from skillshard.comparison.finished import compare_runs
from skillshard.comparison.policy_text import parse_policy
from skillshard.comparison.show import draw_comparison_of_policies, show_comparison
from skillshard.comparison.verdict import ComparedRun, Cost, saved_steps, verdicts
from skillshard.corpus import Corpus
from skillshard.errors import ComparisonError, GraphError, PolicyError
from skillshard.execution import Backend
from skillshard.graph.edges import EdgeRule
from skillshard.graph.learn import learn_graph
from skillshard.graph.skill_graph import SkillGraph
from skillshard.loss import LossKind
from skillshard.mixing.alarms import LOGGER
from skillshard.mixing.mixer import Mixer
from skillshard.policies import fixed, proportional, stratified, temperature
from skillshard.proxy.device import Compute
from skillshard.proxy.reading_choice import ReadingChoice
from skillshard.shards.read import ShardSet
from skillshard.shards.write import write_shards
from tests.commands import fails, skillshard, works

POLICIES = ("stratified", "proportional", "loss_order:eta=0.5")


def shard_set(folder: Path, *, holdout: float = 0.2, rows: Sequence[object] = ()) -> ShardSet:
    rows = rows or [
        {"id": f"{skill}{number}", "text": f"{skill} {number} {word}", "meta": {"skill": skill}}
        for skill, word, num in (("add", "one two three", 30), ("carry", "xyz zyx", 60))
        for number in range(num)
    ]
    (folder / "corpus").mkdir(parents=True)
    (folder / "corpus" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus, backend = Corpus.open(folder / "corpus"), Backend(workers=1)
    tags = taggers.tag_corpus(corpus, taggers.metadata("meta.skill"), folder / "tags", backend=backend)
    write_shards(corpus, tags, folder / "shards", holdout=holdout, shard_bytes=1_000_000, backend=backend)
    return ShardSet.open(folder / "shards")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return shard_set(tmp_path_factory.mktemp("compare"))


def compare(shards: ShardSet, out: Path, **changes: object) -> object:
    arguments = {
        "policies": POLICIES,
        "steps": 4,
        "num_seeds": 2,
        "batch_size": 4,
        "eval_every": 2,
        "eval_samples": 5,
        "reading": ReadingChoice(window=16),
        "compute": Compute("cpu"),
        "backend": Backend(workers=1),
        "progress": False,
        **changes,
    }
    return compare_policies(shards, out, **arguments)  # type: ignore[arg-type]  # changed by name


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files whose content a repeated comparison has to reproduce."""
    files = [folder / "compare.json", folder / "settings.json", *(folder / "trials").glob("*.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_comparison_that_lost_its_last_trials_goes_on_to_the_same_bytes(shards: ShardSet, tmp_path: Path) -> None:
    sentences: list[str] = []
    compare(shards, tmp_path / "C", on_estimate=sentences.append)
    whole = contents(tmp_path / "C")
    assert sentences[0].startswith("6 trials, 24 steps in all")
    (tmp_path / "C" / "compare.json").unlink()
    for record in sorted((tmp_path / "C" / "trials").glob("*.json"))[:2]:
        record.unlink()
    compare(shards, tmp_path / "C", on_estimate=sentences.append)
    assert contents(tmp_path / "C") == whole
    assert sentences[1].startswith("2 trials, 8 steps in all")
    compare(shards, tmp_path / "C", on_estimate=sentences.append)
    assert len(sentences) == 2


def test_more_seeds_keep_the_finished_trials_and_trials_of_a_seed_begin_alike(shards: ShardSet, tmp_path: Path) -> None:
    compare(shards, tmp_path / "C")
    sentences: list[str] = []
    compare(shards, tmp_path / "C", num_seeds=3, on_estimate=sentences.append)
    assert sentences[0].startswith("3 trials")
    result = json.loads((tmp_path / "C" / "compare.json").read_text())
    first_losses = [[run["mean_losses"][0] for run in policy["runs"]] for policy in result["policies"]]
    assert first_losses[0] == first_losses[1] == first_losses[2]
    assert len(set(first_losses[0])) == 3


def test_a_comparison_is_shown_and_drawn(shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = compare(shards, tmp_path / "C")
    show_comparison(result)  # type: ignore[arg-type]  # a CompareFile
    draw_comparison_of_policies(result, tmp_path / "compare.png")  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert "proportional against stratified: worth it: " in shown
    assert "a sign test that could be significant needs 7 seeds" in shown
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_two_graphs_in_a_long_directory_have_different_names_in_the_table(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a-long-directory-with-the-graphs-of-all-experiments"
    folder.mkdir()
    for name in ("learned", "identity"):
        SkillGraph.identity(shards.skills).save(folder / f"{name}.json")
    policies = (
        "stratified",
        *(f"skill_it:{folder}/{name}.json,eta={eta}" for eta, name in enumerate(("learned", "identity"), 1)),
    )
    monkeypatch.setenv("COLUMNS", "120")
    show_comparison(compare(shards, tmp_path / "C", policies=policies))  # type: ignore[arg-type]  # a CompareFile
    table = capsys.readouterr().out.partition("loss: at the end")[0]
    assert "learned.json" in table and "identity.json" in table and "directory" not in table


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"policies": ("stratified", "stratifed")}, "policy 'stratifed' (did you mean 'stratified'?)"),
        ({"num_seeds": 1}, "`num_seeds=1`: a single seed cannot tell"),
        ({"policies": ("stratified", "stratified")}, "policy 'stratified' is the same as 'stratified'"),
        ({"policies": ("stratified",)}, "a comparison needs a baseline and another policy"),
        ({"targets": ("ad",)}, "`targets` 'ad' (did you mean 'add'?): not a skill with held-out samples"),
        ({"baseline": "proportionl"}, "(did you mean 'proportional'?): give one of the policies"),
        (
            {"budget_s": 1e-9},
            "`budget_s` allows 1 s. Raise `budget_s`, or take fewer policies or seeds (`num_seeds`).",
        ),
        (
            {"policies": ("stratified", "loss_order")},
            "policy loss_order takes the arguments eta, edge, window, reduce, prior (missing: eta).",
        ),
        ({"policies": ("stratified", "loss_order:eta=a")}, "eta of loss_order is 'a': "),
        ({"eval_every": 5}, "`eval_every=5`: give a number of steps from 1 to `steps=4`"),
        ({"eval_every": 0}, "`eval_every=0`: give a number of steps from 1 to `steps=4`"),
        ({"budget_s": -1.0}, "`budget_s=-1.0`: give seconds from 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_a_sentence(
    shards: ShardSet, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises((ComparisonError, PolicyError), match=re.escape(sentence)):
        compare(shards, tmp_path / "C", **changes)


def test_a_refused_comparison_leaves_the_directory_free_for_another(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="`budget_s` allows"):
        compare(shards, tmp_path / "C", budget_s=1e-9, steps=400)
    assert not (tmp_path / "C").exists()
    unread = ReadingChoice(window=16, answer_after="=> ")
    with pytest.raises(ComparisonError, match=r"cannot be read: there is nothing behind '=> '.*Change `answer_after`"):
        compare(shards, tmp_path / "C", reading=unread)
    # A killed command can leave a half-written file.
    (tmp_path / "C").mkdir(exist_ok=True)
    (tmp_path / "C" / ".settings.json.1-ab.part").write_text("{")
    compare(shards, tmp_path / "C")
    assert sorted(path.name for path in (tmp_path / "C").iterdir()) == [
        "compare.json",
        "runs",
        "settings.json",
        "trials",
    ]


def test_the_cost_of_a_policy_is_its_measurements_and_the_trials_of_its_graph(shards: ShardSet, tmp_path: Path) -> None:
    graph = learn_graph(
        shards,
        tmp_path / "graph.json",
        method="linear",
        steps=4,
        rule=EdgeRule("absolute", None, "end", clamp=True, off_diagonal=None, drop_uncertain=False),
        reading=ReadingChoice(window=16),
        batch_size=4,
        eval_every=2,
        eval_samples=5,
        compute=Compute("cpu"),
        backend=Backend(workers=1),
        progress=False,
    )
    assert graph.learned is not None
    policies = ("stratified", f"skill_it:{tmp_path}/graph.json,eta=1", "loss_order:eta=1")
    result = compare(shards, tmp_path / "C", policies=policies, eval_samples=100)
    costs = {policy.name: policy.cost for policy in result.policies}  # type: ignore[attr-defined]  # a CompareFile
    # Two measurements of all held-out samples before the last step, each a third of a trained sample; batches of 4 samples.
    num_held_out = sum(map(len, shards.holdout.values()))
    assert 10 < num_held_out < 30
    assert {name: cost.evaluation_steps for name, cost in costs.items()} == pytest.approx(
        {"stratified": 0.0, policies[1]: 2 * num_held_out / 3 / 4, policies[2]: 2 * num_held_out / 3 / 4}
    )
    # Two trials of 4 steps of 4 samples, each with 3 measurements of 5 samples of each of 2 skills.
    assert costs[policies[1]].graph_steps == pytest.approx((2 * 4 * 4 + 2 * 3 * 2 * 5 / 3) / 4)
    assert costs[policies[2]].graph_steps == costs["stratified"].graph_steps == 0


def test_targets_decide_and_other_shards_are_measured(shards: ShardSet, tmp_path: Path) -> None:
    targeted = compare(shards, tmp_path / "T", targets=("carry",), policies=POLICIES[:2])
    assert targeted.skills == ["carry"]  # type: ignore[attr-defined]  # a CompareFile
    whole = compare(shards, tmp_path / "W", policies=POLICIES[:2])
    for ours, both in zip(targeted.policies, whole.policies, strict=True):  # type: ignore[attr-defined]
        for run, of_both in zip(ours.runs, both.runs, strict=True):
            assert run.final_losses == {"carry": of_both.final_losses["carry"]}
            assert run.mean_losses[-1] == of_both.final_losses["carry"]
    rows = [{"id": f"exam{number}", "text": f"exam {number} abc", "meta": {"skill": "exam"}} for number in range(40)]
    other = shard_set(tmp_path / "other", rows=rows)
    elsewhere = compare(shards, tmp_path / "E", eval_shards=other, policies=POLICIES[:2])
    assert elsewhere.skills == ["exam"]  # type: ignore[attr-defined]
    assert elsewhere.made_from["eval_shards"] == other.digest  # type: ignore[attr-defined]
    with pytest.raises(
        ComparisonError, match=r"policy 'loss_order:eta=0.5' reads the losses of add, carry. .* has no held-out"
    ):
        compare(shards, tmp_path / "N", eval_shards=other)


def test_a_target_need_not_be_among_the_trained_skills(shards: ShardSet, tmp_path: Path) -> None:
    options = ("--steps", 2, "--seeds", 2, "--batch-size", 4, "--eval-samples", 5, "--window", 16, "--device", "cpu")
    command = ("compare", shards.root, "--policy", "stratified", "--policy", "temperature:tau=2", "--skills", "add")
    works(*command, "--target", "carry", *options, "--workers", 1, "--out", tmp_path / "C")
    assert json.loads((tmp_path / "C" / "compare.json").read_text())["skills"] == ["carry"]
    page = (tmp_path / "C" / "report.html").read_text()
    assert "4 training runs" in page and str(tmp_path / "C") not in page, "the page may move with its directory"
    works(*command, "--target", "carry", *options, "--workers", 1, "--out", tmp_path / "D")
    assert (tmp_path / "D" / "report.html").read_text() == page


def test_a_hugging_face_model_goes_on_from_its_weights(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.adapters.hf_trainer import byte_tokenizer, tiny

    for name in ("here", "there"):
        tiny().save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)  # the place may be relative
    result = compare(shards, tmp_path / "C", reading=ReadingChoice(proxy="here", window=16))
    runs = [run for policy in result.policies for run in policy.runs]  # type: ignore[attr-defined]  # a CompareFile
    assert len({run.mean_losses[0] for run in runs}) == 1, "every training begins with the model as it is"
    assert all(run.mean_losses[-1] < run.mean_losses[0] for run in runs)
    assert len({run.mean_losses[-1] for run in runs}) == len(runs)
    sentences: list[str] = []
    again = compare(
        shards, tmp_path / "C", reading=ReadingChoice(proxy="there", window=16), on_estimate=sentences.append
    )
    assert again == result and not sentences, "a copy of the model is the same model"
    (tmp_path / "there" / "notes.txt").write_text("changed")
    with pytest.raises(ComparisonError, match=r"holds another comparison \(proxy.notes.txt"):
        compare(shards, tmp_path / "C", reading=ReadingChoice(proxy="there", window=16))


def test_a_text_with_nothing_to_predict_is_refused_with_its_id(tmp_path: Path) -> None:
    rows = [
        {"id": f"{skill}{number}", "text": "x" if number == 7 else f"{skill} {number}", "meta": {"skill": skill}}
        for skill in ("add", "carry")
        for number in range(40)
    ]
    single = shard_set(tmp_path, rows=rows)
    with pytest.raises(ComparisonError, match=r"sample .* cannot be read: a text of a single byte has nothing to pred"):
        compare(single, tmp_path / "C", steps=30, eval_samples=40)
    with pytest.raises(
        GraphError, match=r"7'\) of skill 'add' cannot be read: a text of a single byte has nothing to pr"
    ):
        learn_graph(
            single,
            tmp_path / "graph.json",
            method="linear",
            steps=30,
            rule=EdgeRule("absolute", None, "end", clamp=True, off_diagonal=None, drop_uncertain=False),
            reading=ReadingChoice(window=16),
            batch_size=4,
            compute=Compute("cpu"),
            backend=Backend(workers=1),
            progress=False,
        )


def test_alarms_of_trials_stay_out_of_the_log(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Mixer.report

    def alarmed(*arguments: object, **named: object) -> None:
        LOGGER.warning("an alarm")
        report(*arguments, **named)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(Mixer, "report", alarmed)
    compare(shards, tmp_path / "C", policies=POLICIES[:2])
    assert not [record for record in caplog.records if record.name == "skillshard"]
    LOGGER.warning("an alarm")
    assert [record.message for record in caplog.records if record.name == "skillshard"] == ["an alarm"]


def test_options_of_trainings_are_refused_with_finished_runs(shards: ShardSet, tmp_path: Path) -> None:
    places = [finished(shards, tmp_path / f"s{seed}", stratified(), seed, (3.0, 2.0)) for seed in range(2)]
    for option in ("--steps", "--batch-size", "--window", "--workers"):
        outcome = skillshard("compare", *places, "--baseline", "stratified", option, 16)
        assert outcome.code == 2
        words = " ".join(outcome.err.replace("│", " ").split())
        assert f"{option} is about trainings, and the inputs are finished runs: give one shard set." in words


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (
            "fixed:unknown.json",
            "the fixed weights do not name the skills of the mix: unknown: 'ad' (did you mean 'add'?)",
        ),
        (
            "fixed:missing.json",
            "the fixed weights do not name the skills of the mix: unknown: none; without a weight: add.",
        ),
        ("fixed:unknown.json,new=proportional", "unknown: 'ad' (did you mean 'add'?)"),
        ("fixed:negative.json", "negative.json holds no weights: add is -1, not a number from 0 to 1e100."),
        ("fixed:zero.json", "zero.json holds no weights above 0: all weights are 0."),
        ("fixed:text.json", "text.json holds no weights: add is 'a', not a number"),
        ("fixed:list.json", "list.json holds no weights but a list."),
        ("fixed:nowhere.json", "nowhere.json: no such file."),
        ("fixed:damaged.json", "damaged.json is not valid JSON"),
        ("fixed", "policy fixed takes the arguments weights, new (missing: weights)."),
        ("loss_order:eta=-1", "eta is -1.0: give a finite number >= 0"),
        ("loss_order:eta=nan", "eta of loss_order is 'nan'"),
        ("loss_order:eta=0.5,prior=unknown.json", "prior weights do not name the skills of the mix: unknown: 'ad'"),
        ("skill_it:graph.json,eta=-0.5", "eta is -0.5: give a finite number >= 0"),
        ("skill_it:graph.json", "(missing: eta)"),
        (
            "skill_it:others.json,eta=1",
            "are not among the 2 training skills of the graph: 'red', 'blue'. Give a graph with a row for",
        ),
        ("skill_it:nowhere.json,eta=1", "nowhere.json: no such file."),
        ("skill_it:tokens.json,eta=1", "its graph was measured with nats per token over all tokens"),
        (
            "skill_it:tokens.json,eta=1+floor:least=0.1",
            "or allow the mix with any_loss=true in the text of the policy.",
        ),
        ("skill_stratified:others.json", "are not among the 2 training skills of the graph"),
        ("temperature:tau=0", "tau is 0.0: give a finite number > 0"),
        ("unimax:epochs=0", "epochs is 0.0: give the maximal number of passes"),
        ("odm:warmup_steps=-1", "warmup_steps is -1: give optimizer steps, a whole number >= 0"),
        ("stratified+floor:least=0.5", "floor 0.5 x 2 skills is 1: give a floor below 1 / 2"),
        ("stratified+cap:most=0.1", "cap 0.1 x 2 skills is 0.2, less than the whole"),
        ("groups.json", "the groups do not name the skills of the mix: unknown: none; without a group: 'carry'"),
        ("stages.json", "stage 1: the fixed weights do not name the skills of the mix"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_before_anything_trains(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "unknown": {"ad": 1, "carry": 1},
        "missing": {"carry": 1},
        "negative": {"add": -1, "carry": 1},
        "zero": {"add": 0, "carry": 0},
        "text": {"add": "a", "carry": 1},
        "list": [1, 2],
        "groups": {"policy": "by_group", "outer": "stratified", "inner": "stratified", "groups": {"one": ["add"]}},
        "stages": {
            "policy": "stages",
            "stages": [{"until": 2, "weights": {"add": 1}}, {"policy": "stratified"}],
        },
    }
    for name, content in files.items():
        Path(f"{name}.json").write_text(json.dumps(content))
    Path("damaged.json").write_text('{"add": 1')
    SkillGraph.chain(shards.skills).save("graph.json")
    SkillGraph.chain(("red", "blue")).save("others.json")
    SkillGraph(shards.skills, shards.skills, [[1, 0.5], [0, 1]], loss=LossKind(reduction="per_token")).save(
        "tokens.json"
    )
    monkeypatch.setattr("skillshard.comparison.compare.run", None)  # every training and every timing begins here
    arguments = ("--policy", "stratified", "--policy", policy, "--seeds", 2, "--steps", 4, "--out", tmp_path / "C")
    refused = fails("compare", shards.root, *arguments)
    assert sentence in refused and refused.startswith(f"policy {policy.partition('+')[0]}")
    assert not (tmp_path / "C").exists()
    # The refusal does not depend on the place of the policy.
    arguments = ("--policy", policy, "--policy", "stratified", "--seeds", 2, "--steps", 4, "--out", tmp_path / "C")
    assert fails("compare", shards.root, *arguments) == refused


def test_a_graph_of_another_kind_of_losses_is_compared_where_the_policy_allows_the_mix(
    shards: ShardSet, tmp_path: Path
) -> None:
    graph = SkillGraph(shards.skills, shards.skills, [[1, 0.5], [0, 1]], loss=LossKind(reduction="per_token"))
    graph.save(tmp_path / "graph.json")
    policies = ("stratified", f"skill_it:{tmp_path}/graph.json,eta=0.5,any_loss=true")
    compare(shards, tmp_path / "C", policies=policies)
    compare(shards, tmp_path / "D", policies=(policies[0], policies[1].rpartition(",")[0]), reduction="per_token")
    for folder in ("C", "D"):  # two seeds of each policy
        assert len(list((tmp_path / folder / "trials").glob("*.json"))) == 4


def test_a_graph_of_other_skills_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    SkillGraph.chain(("red", "blue")).save(tmp_path / "graph.json")
    with pytest.raises(GraphError, match="add"):
        parse_policy(f"skill_it:{tmp_path}/graph.json,eta=1", skills=shards.skills, targets=(), draws=10)


def test_shards_without_held_out_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="has no held-out samples to measure"):
        compare(shard_set(tmp_path / "bare", holdout=0.0), tmp_path / "C")


def test_a_directory_of_another_comparison_or_of_anything_else_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    compare(shards, tmp_path / "C")
    with pytest.raises(ComparisonError, match=r"holds another comparison \(steps"):
        compare(shards, tmp_path / "C", steps=6)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ComparisonError, match="is not empty and holds no comparison"):
        compare(shards, tmp_path / "other")


def runs_of(*finals: float, first: float = 4.0) -> list[ComparedRun]:
    return [
        ComparedRun(seed=seed, steps=[0, 10, 20], mean_losses=[first, (first + final) / 2, final], final_losses={})
        for seed, final in enumerate(finals)
    ]


def test_a_policy_is_worth_it_only_if_its_gain_is_significant_and_exceeds_its_cost() -> None:
    runs = {"base": runs_of(2.0, 2.1, 1.9), "better": runs_of(1.0, 1.11, 0.9), "worse": runs_of(3.0, 3.11, 2.9)}
    runs |= {"same": runs_of(2.0, 2.1, 1.9), "noise": runs_of(2.5, 1.9, 1.8)}
    decided = verdicts(runs, "base", {"better": Cost(graph_steps=1)})
    assert {name: verdict.worth_it for name, verdict in decided.items()} == {
        "better": "yes",
        "worse": "no",
        "same": "no",
        "noise": "undecided",
    }
    assert verdicts(runs, "base", {"better": Cost(graph_steps=1000)})["better"].worth_it == "no"
    single = verdicts({"base": runs_of(2.0), "better": runs_of(1.0)}, "base")["better"]
    assert (single.worth_it, single.p) == ("undecided", None)
    assert "a single pair of runs" in single.why


def test_the_saved_steps_are_of_the_seeds_that_both_have() -> None:
    def run(seed: int, *losses: float) -> ComparedRun:
        return ComparedRun(seed=seed, steps=[0, 10, 20], mean_losses=list(losses), final_losses={})

    ours, theirs = [run(0, 4, 2, 1)], [run(0, 4, 3, 2)]
    assert saved_steps(ours, theirs) == 10
    assert saved_steps([*ours, run(1, 9, 9, 9)], [*theirs, run(2, 0.1, 0.1, 0.1)]) == 10


def test_the_curve_leaves_out_the_loss_before_the_first_step_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before, without = (
        {"a": [ComparedRun(seed=0, steps=steps, mean_losses=losses, final_losses={})], "b": runs_of(2.0)}
        for steps, losses in (([0, 5, 10], [9.0, 3.0, 1.0]), ([5, 10], [3.0, 1.0]))
    )
    for runs in (before, without):
        show_comparison(compared(runs, "b", {}, made_from={}, skills=("x",)))
        # The table comes before the verdict, which begins with the name too.
        row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["a"])
        assert row[1:3] == ["1.0000", "2.0000"]


def finished(shards: ShardSet, folder: Path, policy: object, seed: int, losses: tuple[float, float]) -> str:
    mixer = Mixer(shards, policy, ledger=folder, round_draws=8, seed=seed, step_draws=4)  # type: ignore[arg-type]
    for step, loss in zip((2, 4), losses, strict=True):
        mixer.batch(0, 4 * step)  # a report of samples that nobody has drawn is refused
        mixer.report(step, dict.fromkeys(shards.skills, loss))
    return str(folder)


def test_finished_runs_of_one_policy_are_named_by_the_arguments_that_differ(shards: ShardSet, tmp_path: Path) -> None:
    places = [finished(shards, tmp_path / f"t{tau}", temperature(tau), 0, (3.0, 2.0)) for tau in (1.5, 2.0)]
    compared_runs = compare_runs(places, baseline="temperature (tau=1.5)")
    assert [policy.name for policy in compared_runs.policies] == ["temperature (tau=1.5)", "temperature (tau=2.0)"]
    thirds = [{"add": 1 / 3, "carry": 2 / 3}, {"add": 2 / 7, "carry": 5 / 7}]
    long = [
        finished(shards, tmp_path / f"f{number}", fixed(weights), 0, (3.0, 2.0))
        for number, weights in enumerate(thirds)
    ]
    assert [policy.name for policy in compare_runs(long, baseline=long[0]).policies] == ["fixed (1)", "fixed (2)"]


def test_finished_runs_are_paired_by_seed(shards: ShardSet, tmp_path: Path) -> None:
    places = [finished(shards, tmp_path / f"s{seed}", stratified(), seed, (3.0, 2.0 + seed / 100)) for seed in range(3)]
    places += [
        finished(shards, tmp_path / f"p{seed}", proportional(), seed, (3.0, 1.5 + seed / 99)) for seed in range(3)
    ]
    verdict = compare_runs(places, baseline="stratified").policies[1].verdict
    assert verdict is not None
    assert (verdict.worth_it, verdict.num_pairs, verdict.lower_on) == ("yes", 3, 3)
    single = compare_runs([places[0], places[3]], baseline=places[0]).policies[1].verdict
    assert single is not None
    assert single.worth_it == "undecided"
    shutil.copytree(places[0], tmp_path / "copy")
    with pytest.raises(ComparisonError, match="is a second run of stratified with seed 0"):
        compare_runs([*places, str(tmp_path / "copy")], baseline="stratified")
    with pytest.raises(ComparisonError, match="did you mean 'stratified'"):
        compare_runs(places, baseline="stratifed")
