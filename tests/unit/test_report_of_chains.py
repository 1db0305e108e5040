"""Every view of a run has the numbers of the stream, also where a run ends or is continued inside a round."""

import csv
import io
from collections import Counter
from pathlib import Path

import pytest

import skillshard as ss
from skillshard import policies, taggers
from skillshard.corpus import Corpus
from skillshard.errors import GraphError
from skillshard.mixing.difference import difference
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.recorded_chain import open_recorded_chain
from skillshard.mixing.records import open_records
from skillshard.report.history import report_facts
from skillshard.report.page import page_of
from skillshard.report.run_facts import run_facts
from skillshard.shards.read import ShardSet
from skillshard.shards.write import append_shards
from skillshard.taggers import tag_corpus
from tests.commands import fails, skillshard, works
from tests.conftest import HERE, samples, tag_and_shard, write_corpus


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chains")
    tag_and_shard(write_corpus(folder / "corpus", samples(add=90, carry=130, negate=250)), folder)
    return folder


@pytest.fixture
def shards(root: Path) -> ShardSet:
    return ShardSet.open(root / "shards")


def drawn(ledger: Path, shards: ShardSet, num: int) -> Counter[str]:
    """Count the first draws of a run and of the runs before, one by one."""
    return Counter(sample.skill for _, sample in open_recorded_chain(ledger, [shards]).samples(range(num)))


def table(ledger: Path) -> list[dict[str, str]]:
    """Return the rows of `skillshard inspect RUN --csv`."""
    return [*csv.DictReader(io.StringIO(works("inspect", ledger, "--csv")))]


def test_a_run_that_ends_inside_a_round_has_the_draws_of_its_stream_in_every_view(
    shards: ShardSet, tmp_path: Path
) -> None:
    mixer = ss.Mixer(
        shards, policies.stratified(), ledger=tmp_path / "run", round_draws=64, step_draws=16, repeat="stop"
    )
    num_draws = sum(len(batch) for batch in mixer.batches(16))
    assert num_draws % 64, "the stream ends inside a round"
    expected = drawn(tmp_path / "run", shards, num_draws)
    facts = run_facts(DirectoryLedger(tmp_path / "run"))
    assert {skill.name: skill.num_drawn for skill in facts.skills} == expected
    assert facts.num_draws == num_draws
    assert sum(skill.intended for skill in facts.skills) == pytest.approx(num_draws)
    assert max(skill.epochs for skill in facts.skills) == 1.0
    rows = table(tmp_path / "run")
    counted = Counter[str]()
    for row in rows:
        if row["quantity"] == "drawn":
            counted[row["skill"]] += int(row["value"])
    assert counted == expected
    last = {row["skill"]: float(row["value"]) for row in rows if row["quantity"] == "epochs"}
    (run,) = report_facts([tmp_path / "run"]).runs
    for skill, shown in zip(run.skills, facts.skills, strict=True):
        assert skill.epochs[-1] == shown.epochs == last[skill.name]
        assert skill.achieved[-1] == shown.num_drawn / num_draws


def test_rounds_of_a_chain_do_not_overlap_where_a_run_is_continued_inside_a_round(
    shards: ShardSet, tmp_path: Path
) -> None:
    first = ss.Mixer(shards, policies.proportional(), ledger=tmp_path / "a", round_draws=64, step_draws=10)
    first.batch(0, 130)
    second = ss.Mixer.continue_from(
        tmp_path / "a",
        draw=100,
        step=10,
        shards=shards,
        policy=policies.stratified(),
        ledger=tmp_path / "b",
        round_draws=50,
        step_draws=10,
    )
    second.batch(100, 120)
    (run,) = report_facts([tmp_path / "b"]).runs
    spans = [(row.first_draw, row.end_draw) for row in run.rounds]
    assert spans == [(0, 64), (64, 100), (100, 150), (150, 200), (200, 250)]
    for number, (_, end) in enumerate(spans):
        expected = drawn(tmp_path / "b", shards, end)
        assert {skill.name: skill.achieved[number] for skill in run.skills} == {
            name: num / end for name, num in expected.items()
        }
        epochs = {skill.name: skill.epochs[number] for skill in run.skills}
        assert epochs == {name: num / len(shards.train[name]) for name, num in expected.items()}
        assert sum(skill.intended[number] or 0 for skill in run.skills) == pytest.approx(1)


def test_the_table_of_a_run_has_the_rounds_and_the_reports_of_the_runs_before(shards: ShardSet, tmp_path: Path) -> None:
    losses = {"add": 3.0, "carry": 2.0, "negate": 1.0}
    first = ss.Mixer(shards, policies.loss_order(eta=0.5), ledger=tmp_path / "a", round_draws=64, step_draws=10)
    for step in (0, 5, 10, 13):
        first.report(step, losses)
        first.batch(10 * step, 10)
    second = ss.Mixer.continue_from(
        tmp_path / "a", draw=100, step=10, shards=shards, policy=policies.loss_order(eta=1.0), ledger=tmp_path / "b"
    )
    second.report(15, losses, draw=150)
    second.batch(100, 100)
    rows = table(tmp_path / "b")
    counted = Counter[str]()
    for row in rows:
        if row["quantity"] == "drawn":
            counted[row["skill"]] += int(row["value"])
    end = open_recorded_chain(tmp_path / "b").num_draws
    assert end > 200 and counted == drawn(tmp_path / "b", shards, end)
    rounds = [row["draw"] for row in rows if (row["quantity"], row["skill"]) == ("weight", "add")]
    assert rounds[:3] == ["0", "64", "100"]
    reported = [(row["draw"], row["step"]) for row in rows if (row["quantity"], row["skill"]) == ("loss", "carry")]
    assert reported == [("0", "0"), ("50", "5"), ("100", "10"), ("150", "15")]
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    outcome = skillshard("inspect", tmp_path / "b", "--csv")
    assert outcome.code == 0 and "note: earlier runs are not listed: " in outcome.err
    assert outcome.out.splitlines()[1].startswith("100,,weight,add,")


def test_a_change_names_each_skill_and_each_argument_that_changed(root: Path, shards: ShardSet, tmp_path: Path) -> None:
    """A skill has another name, a skill is left out, and the policy has another number."""
    corpus = ss.Corpus.open(root / "corpus")
    tags = ss.regroup_tags([root / "tags"], tmp_path / "tags", mapping={"negate": "opposite"})
    other = ss.write_shards(corpus, tags, tmp_path / "shards", shard_bytes=50_000, holdout=0.1)
    ss.Mixer(shards, policies.loss_order(eta=0.5), ledger=tmp_path / "a", round_draws=50, step_draws=10).report(
        0, {"add": 3.0, "carry": 2.0, "negate": 1.0}
    )
    ss.Mixer(shards, policies.loss_order(eta=0.5), ledger=tmp_path / "a", round_draws=50, step_draws=10).batch(0, 50)
    chosen = other.choose(["add", "opposite"])
    second = ss.Mixer.continue_from(
        tmp_path / "a", draw=50, step=5, shards=chosen, policy=policies.loss_order(eta=1.0), ledger=tmp_path / "b", step_draws=10
    )  # fmt: skip

    def both(first: str, second: str) -> str:
        return difference(*(open_records(DirectoryLedger(tmp_path / name)) for name in (first, second))).sentence

    second.report(5, {"add": 3.0, "opposite": 1.0})
    second.batch(50, 100)
    (run,) = report_facts([tmp_path / "b"]).runs
    (change,) = [event.sentence for event in run.events if event.kind == "change"]
    assert change == (
        f"{tmp_path / 'b'} continues the run: eta: 0.5 -> 1.0; renamed: negate -> opposite; skill removed: carry"
    )
    assert both("a", "b").startswith(
        "equal up to draw 50, where the second run is continued by another run, which changes eta: 0.5 -> 1.0; renamed: negate -> opposite; skill "
        "removed: carry. "
    )
    third = ss.Mixer.continue_from(
        tmp_path / "b", draw=100, step=10, shards=shards, policy=policies.stratified(), ledger=tmp_path / "c", seed=5, skip=[(100, 10, "a spike")]
    )  # fmt: skip
    third.batch(100, 50)
    (run,) = report_facts([tmp_path / "c"]).runs
    change, skip = (event.sentence for event in run.events[-2:])
    assert skip == "draws 100 to 109 of the run before are skipped, because a spike"
    assert both("c", "b").startswith(
        "equal up to draw 100, where the first run is continued by another run, which changes policy: 'loss_order' -> "
    )
    assert f"skill added: carry; {skip}." in both("c", "b")
    assert change.endswith(
        "policy: 'loss_order' -> 'stratified'; seed: 0 -> 5; renamed: opposite -> negate; skill added: carry"
    )


def test_a_policy_that_does_not_exist_is_a_fault_of_no_run_of_a_chain(shards: ShardSet, tmp_path: Path) -> None:
    ss.Mixer(shards, policies.proportional(), ledger=tmp_path / "a", round_draws=50, step_draws=10).batch(0, 50)
    ss.Mixer.continue_from(
        tmp_path / "a", draw=50, step=5, shards=shards, policy=policies.stratified(), ledger=tmp_path / "b", step_draws=10
    ).batch(50, 50)  # fmt: skip
    for policy in ("nope", "skill_it:eta=1"):
        sentence = fails("replay", tmp_path / "b", "--policy", policy)
        assert "--last" not in sentence and "the run " not in sentence


def test_the_page_says_what_a_draw_is(shards: ShardSet, tmp_path: Path) -> None:
    ss.Mixer(shards, policies.stratified(), ledger=tmp_path / "run", round_draws=50).batch(0, 50)
    facts = report_facts([tmp_path / "run"])
    assert "A draw is a training sample.</p>" in page_of(facts, num_lines=8)
    (run,) = facts.runs
    blocks = run.model_copy(update={"facts": run.facts.model_copy(update={"unit": "blocks"})})
    assert "A draw is a block of tokens.</p>" in page_of(facts.model_copy(update={"runs": [blocks]}), num_lines=8)
    both = page_of(facts.model_copy(update={"runs": [run, blocks]}), num_lines=8)
    assert "A draw is a training sample, or a block of tokens in a run with weights in blocks.</p>" in both


@pytest.mark.filterwarnings("ignore:skill.* 4 epochs:UserWarning")
def test_a_skill_that_grew_has_the_draws_that_it_was_given_in_every_view(tmp_path: Path) -> None:
    rows = samples(add=25, carry=40)
    few, more = ([row for row in rows if (row["meta"]["number"] < 20) == is_few] for is_few in (True, False))
    first = tag_and_shard(write_corpus(tmp_path / "few", few), tmp_path)
    added = Corpus.open(write_corpus(tmp_path / "more", more))
    tags = tag_corpus(added, taggers.metadata("skill"), tmp_path / "tags-more", backend=HERE)
    larger = append_shards(first, added, tags, tmp_path / "larger", backend=HERE)
    mixer = ss.Mixer(first, policies.stratified(), ledger=tmp_path / "1", round_draws=32, step_draws=16)
    mixer.batch(0, 96)
    num_draws = 90
    for number in (2, 3):  # the draws of earlier epochs stay as they are in a second continued run
        mixer = ss.Mixer.continue_from(
            tmp_path / str(number - 1),
            draw=num_draws,
            shards=larger,
            policy=policies.stratified(),
            ledger=tmp_path / str(number),
            step_draws=16,
        )
        mixer.batch(num_draws, 64)
        num_draws += 64
        chain = open_recorded_chain(tmp_path / str(number))
        expected = Counter(sample.skill for _, sample in chain.samples(range(num_draws)))
        facts = run_facts(DirectoryLedger(tmp_path / str(number)))
        assert {skill.name: skill.num_drawn for skill in facts.skills} == expected
        assert all(abs(skill.intended - skill.num_drawn) < 2 for skill in facts.skills)
        (run,) = report_facts([tmp_path / str(number)]).runs
        assert {skill.name: skill.achieved[-1] for skill in run.skills} == {
            name: num / num_draws for name, num in expected.items()
        }
    # Epochs are passes over the present samples.
    assert all(skill.epochs * len(larger.train[skill.name]) > skill.num_drawn for skill in facts.skills)


def test_the_graph_of_an_earlier_run_is_shown(shards: ShardSet, tmp_path: Path) -> None:
    graph = ss.SkillGraph.chain(shards.skills)
    graph.save(tmp_path / "graph.json")
    ss.SkillGraph.identity(shards.skills).save(tmp_path / "other.json")
    first = ss.Mixer(
        shards, policies.skill_it(graph, eta=0.5), ledger=tmp_path / "a", round_draws=32, step_draws=8, lag="live"
    )
    first.report(0, dict.fromkeys(shards.skills, 2.0))
    first.batch(0, 64)
    ss.Mixer.continue_from(
        tmp_path / "a", draw=64, shards=shards, policy=policies.stratified(), ledger=tmp_path / "b", step_draws=8
    ).batch(64, 32)
    (run,) = report_facts([tmp_path / "b"], graphs=[tmp_path / "graph.json"]).runs
    assert run.graph is not None and run.graph.train_skills == list(shards.skills)
    with pytest.raises(GraphError, match=r"no policy of these runs uses the graph .*other\.json"):
        report_facts([tmp_path / "b"], graphs=[tmp_path / "other.json"])
