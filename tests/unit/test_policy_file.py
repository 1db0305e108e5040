"""Policies in a file of JSON: what the file means, what is refused and where, and every command that takes the file."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard import policies
from skillshard.comparison.policy_text import parse_policy
from skillshard.errors import GraphError, PolicyError, SkillshardError, StorageError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.named_policy import POLICIES, Context, policy_of_record
from skillshard.mixing.policy_file import MOST_NESTED, policy_given, read_policy
from skillshard.mixing.records import open_records
from skillshard.mixing.replay import replay
from skillshard.policies import Policy
from skillshard.policies.policy import RunFacts, in_draws
from skillshard.shards.read import ShardSet
from tests.commands import fails, skillshard, works
from tests.conftest import REPOSITORY

SKILLS = ("code/c", "code/python", "web")
EQUAL = dict.fromkeys(SKILLS, 1.0)
SCHEMA = json.loads((REPOSITORY / "schemas" / "policy-1.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def fits(value: Any) -> bool:
    return VALIDATOR.is_valid(value)


def written(value: Any, place: Path) -> Path:
    place.write_text(json.dumps(value))
    return place


FLAT: dict[str, dict[str, Any]] = {
    "ado": {"warmup_steps": 5, "refit_steps": 5},
    "aioli": {"eta": 0.5, "period_rounds": 20},
    "anti_curriculum": {"losses": EQUAL, "draws": 100},
    "curriculum": {"losses": EQUAL, "draws": 100},
    "doremi": {"reference": EQUAL},
    "exp3": {},
    "fixed": {"weights": {"code/c": 1.0, "code/python": 2.0, "web": 0.5}},
    "loss_order": {"eta": 1.0, "reduce": "mean", "prior": EQUAL},
    "odm": {"warmup_steps": 5},
    "proportional": {},
    "skill_curriculum": {"losses": EQUAL, "draws": 100},
    "softmax_loss": {"temperature": 2.0},
    "stratified": {},
    "temperature": {"tau": 2.5},
    "unimax": {"draws": 100, "epochs": 2.0},
}
WITH_GRAPH: dict[str, dict[str, Any]] = {
    "graph_refresh": {"eta": 0.5, "period_rounds": 20},
    "skill_it": {"eta": 0.5, "window": 2},
    "skill_stratified": {},
}


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in ("stages", "by_group")])
def test_every_policy_of_a_file_is_the_policy_of_python_and_of_its_record(name: str, tmp_path: Path) -> None:
    graph = SkillGraph.chain(SKILLS)
    graph.save(tmp_path / "graph.json")
    arguments = {**WITH_GRAPH[name], "graph": graph} if name in WITH_GRAPH else FLAT[name]
    content = {"policy": name, **arguments, **({"graph": "graph.json"} if name in WITH_GRAPH else {})}
    # A whole number in JSON is a float where the argument is a float.
    content = {key: int(value) if value in (1.0, 2.0) else value for key, value in content.items()}
    expected = POLICIES[name](**arguments)
    policy = read_policy(written(content, tmp_path / "policy.json"))
    assert (policy.name, policy.arguments) == (name, expected.arguments) and fits(content)
    record = json.loads(json.dumps(policy.arguments))
    assert policy_of_record(name, record, graphs=[str(tmp_path / "graph.json")]).arguments == policy.arguments


def leaves() -> st.SearchStrategy[Any]:
    eta = st.floats(0.01, 4)
    return st.one_of(
        st.sampled_from(["stratified", "proportional", "temperature:tau=2", "loss_order:eta=0.5+floor:least=0.01"]),
        st.builds(lambda eta: {"policy": "loss_order", "eta": eta, "transforms": ["max_change:most=0.5"]}, eta),
        st.builds(lambda tau: {"policy": "temperature", "tau": tau}, eta),
        st.just({"policy": "softmax_loss:temperature=2", "transforms": [{"transform": "floor", "least": 0.02}]}),
    )


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    ends = st.lists(st.integers(1, 1_000), unique=True, max_size=3).map(sorted)
    stages = ends.flatmap(
        lambda ends: st.lists(inner, min_size=len(ends) + 1, max_size=len(ends) + 1).map(
            lambda chosen: [
                {"until": end, "policy": policy} if end else {"policy": policy}
                for end, policy in zip([*ends, None], chosen, strict=True)
            ]
        )
    )
    of_stages = st.builds(
        lambda stages, unit, blend: {"policy": "stages", "stages": stages, "unit": unit, "blend": blend},
        stages,
        st.sampled_from(["draws", "steps"]),
        st.sampled_from(["none", "linear", "cosine"]),
    )
    of_groups = st.builds(
        lambda outer, inner: {"policy": "by_group", "outer": outer, "inner": inner, "groups": "prefix"}, inner, inner
    )
    return st.one_of(of_stages, of_groups)


@given(st.recursive(leaves(), nested, max_leaves=8))
def test_a_policy_of_policies_is_made_again_from_its_record_after_the_conversion_to_draws(value: Any) -> None:
    content = value if isinstance(value, dict) else {"policy": "stages", "stages": [{"policy": value}]}
    assert fits(content)
    try:
        policy = in_draws(read_policy(json.dumps(content)), RunFacts(SKILLS, (50, 30, 20), step_draws=8))
    except PolicyError as error:
        assert f"deeper than {MOST_NESTED}" in str(error)
        return
    again = policy_of_record(policy.name, json.loads(json.dumps(policy.arguments)))
    # Without facts: the ends in draws come from the record alone.
    assert again.arguments == policy.arguments
    assert again.init(SKILLS, (50, 30, 20)) == policy.init(SKILLS, (50, 30, 20))


STAGES = {"policy": "stages", "stages": [{"until": 20, "policy": "proportional"}, {"weights": EQUAL}]}
GROUPS = {"policy": "by_group", "outer": "stratified", "inner": "proportional", "groups": "prefix"}


def changed(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**base, **changes}


# A fault of the shape is also refused by the schema. A fault of a value, such as a falling end, is not.
OF_SHAPE: list[tuple[Any, str]] = [
    ([], "policy.json: a list is no policy"),
    ({}, 'policy.json: an object of a policy needs the key "policy": give'),
    ({"polcy": "stratified"}, "needs the key \"policy\", and the object has 'polcy' (did you mean 'policy'?): give"),
    ({"policy": 3}, 'policy.json: "policy" is a number: give the name of a policy'),
    ({"policy": "uniform"}, "policy.json: 'uniform' is no policy of skillshard (did you mean 'stratified'?)"),
    ({"policy": "loss_ordr", "eta": 1}, "policy.json: 'loss_ordr' is no policy of skillshard (did you mean 'loss_order'?)"),
    ({"policy": "loss_order"}, "policy.json: policy loss_order takes the arguments eta, edge, window, reduce, prior (missing: eta)"),
    ({"policy": "loss_order", "eta": True}, "policy.json: eta of loss_order is True"),
    ({"policy": "loss_order", "eta": "much"}, "policy.json: eta of loss_order is 'much'"),
    ({"policy": "loss_order", "etta": 1}, "unknown: 'etta' (did you mean 'eta'?); missing: eta"),
    ({"policy": "loss_order:eta=1", "eta": 2}, "policy.json: unknown key 'eta'. The keys: policy, transforms."),
    ({"policy": "skill_it", "eta": 1, "graph": [[1]]}, 'policy.json, graph: a list is no graph: give the file of a graph, or "identity"'),
    ({"policy": "fixed", "weights": {"add": "1"}}, "policy.json: weights of fixed is {'add': '1'}: add: Input should be a valid number"),
    (changed(GROUPS, transforms="floor"), "policy.json, transforms: a text is no list of transforms"),
    (changed(GROUPS, transforms=[{"floor": 1}]), "policy.json, transforms.0: a transform is a text or an object"),
    (changed(GROUPS, transforms=[{"transform": "flor"}]), "policy.json, transforms.0: 'flor' is no transform of skillshard (did you mean 'floor'?)"),
    (changed(GROUPS, inner=7), "policy.json, inner: a number is no policy"),
    (changed(GROUPS, groups=["a"]), "policy.json, groups: a list names no groups"),
    (changed(GROUPS, groups={"a": "x"}), "policy.json, groups.a: a group is a list of skills"),
    (changed(GROUPS, groups={"a": [1]}), "policy.json, groups.a: a group is a list of skills"),
    (changed(GROUPS, group="prefix"), "policy.json: policy by_group takes the arguments outer, inner, groups (unknown: 'group' (did you mean 'groups'?))"),
    (changed(STAGES, unit="step"), "policy.json: unit of stages is 'step': Input should be 'draws', 'steps' or 'tokens'"),
    (changed(STAGES, blend=True), "policy.json: blend of stages is True"),
    (changed(STAGES, step_draws="8"), "policy.json: step_draws of stages is '8'"),
    (changed(STAGES, stages=[]), "policy.json, stages: an empty list is no list of stages"),
    (changed(STAGES, stages={"until": 3}), "policy.json, stages: an object is no list of stages"),
    (changed(STAGES, stages=["stratified"]), "policy.json, stages.0: a text is no stage"),
    (changed(STAGES, stages=[{"untill": 3, "policy": "stratified"}]), "policy.json, stages.0: unknown key 'untill' (did you mean 'until'?). The keys: until, policy, weights."),
    (changed(STAGES, stages=[{"until": 3}]), "policy.json, stages.0: a stage has either \"policy\" or \"weights\""),
    (changed(STAGES, stages=[{"weights": EQUAL, "policy": "stratified"}]), "policy.json, stages.0: a stage has either"),
    (changed(STAGES, stages=[{"weights": 3}]), "policy.json, stages.0.weights: a number holds no weights"),
    (changed(STAGES, stages=[{"until": "3", "weights": EQUAL}, {"weights": EQUAL}]), "policy.json, stages.0.until: a text ends no stage: give a whole number, and leave out"),
    (changed(STAGES, stages=[{"until": 0, "weights": EQUAL}, {"weights": EQUAL}]), "policy.json: stage 1 ends at 0"),
    (changed(STAGES, stages=[{"policy": {"policy": "stages", "stages": [{"policy": None}]}}]), "policy.json, stages.0.policy.stages.0.policy: null is no policy"),
]  # fmt: skip
OF_VALUES: list[tuple[Any, str]] = [
    (changed(STAGES, stages=[{"until": 20, "weights": EQUAL}, {"until": 10, "weights": EQUAL}, {"weights": EQUAL}]), "policy.json: stage 2 ends at 10: give a whole number of draws above 20, the beginning of the stage. Only the last stage has no end."),
    (changed(STAGES, stages=[{"until": 20, "weights": EQUAL}, {"until": 20, "weights": EQUAL}, {"weights": EQUAL}]), "policy.json: stage 2 ends at 20"),
    (changed(STAGES, stages=[{"until": 20, "weights": EQUAL}]), 'policy.json, stages.0.until: the last stage ends at 20, and a stream has no end: leave out "until" in the last stage'),
    (changed(STAGES, stages=[{"weights": EQUAL}, {"weights": EQUAL}]), 'policy.json, stages.0: the stage has no "until", and only the last stage has no end: give a whole number'),
    (changed(STAGES, stages=[{"policy": "loss_ordr:eta=1"}]), "policy.json, stages.0.policy: 'loss_ordr' is no policy of skillshard (did you mean 'loss_order'?)"),
    (changed(STAGES, stages=[{"weights": {"add": 0}}]), "policy.json, stages.0.weights: the fixed weights are not numbers >= 0 with a sum > 0"),
    (changed(STAGES, stages=[{"weights": "no.json"}]), "no.json: no such file"),
    (changed(STAGES, stages=[{"policy": "stages:unit=steps"}]), "policy.json, stages.0.policy: policy stages holds other policies, so write the policy as JSON"),
    (changed(GROUPS, outer={"policy": "skill_it", "graph": "no.json", "eta": 1}), "policy.json, outer.graph: "),
    (changed(GROUPS, outer="skill_it:no.json,eta=1"), "policy.json, outer: "),
    (changed(GROUPS, outer={"policy": "aioli", "eta": 1, "period_rounds": 20}), "policy.json: policy aioli has probes"),
    (changed(GROUPS, groups={"a": ["x"], "b": ["x"]}), "policy.json: skill 'x' is in group 'a' and in group 'b'"),
    (changed(GROUPS, groups={"a": []}), "policy.json: 'a' has no skill"),
    (changed(GROUPS, inner={"code": "stratified"}, groups={"cod": ["x"]}), "policy.json: the inner policies do not name the groups: unknown: 'code' (did you mean 'cod'?)"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "sentence"), OF_SHAPE + OF_VALUES)
def test_a_file_that_holds_no_policy_is_refused_with_the_place_in_the_file(
    content: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(content, Path("policy.json"))
    with pytest.raises(PolicyError) as caught:
        read_policy("policy.json")
    assert sentence in str(caught.value) and str(caught.value).endswith(".")
    assert fits(content) == ((content, sentence) in OF_VALUES)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "policy.json"
    for text, sentence in [
        ('{"policy": ', "is not valid JSON"),
        ('{"policy": "stratified", "policy": "proportional"}', "the key 'policy' stands twice"),
        ("[" * 3_000, "is not valid JSON"),
    ]:
        place.write_text(text)
        with pytest.raises(StorageError, match=sentence):
            read_policy(place)
    with pytest.raises(StorageError, match="no such file"):
        read_policy(tmp_path / "other.json")


def test_policies_nest_to_a_limit() -> None:
    def deep(num: int) -> dict[str, Any]:
        return {"policy": "stages", "stages": [{"policy": deep(num - 1) if num > 1 else "stratified"}]}

    assert read_policy(json.dumps(deep(MOST_NESTED - 1))).name == "stages"
    with pytest.raises(PolicyError, match=rf"stages\.0\.policy: policies are nested deeper than {MOST_NESTED} levels"):
        read_policy(json.dumps(deep(MOST_NESTED)))
    with pytest.raises(PolicyError, match="nested deeper"):
        read_policy(json.dumps(deep(200)))


def test_files_are_named_relative_to_the_directory_of_the_policy_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    graph = SkillGraph.chain(SKILLS)
    graph.save(tmp_path / "graph.json")
    written(EQUAL, tmp_path / "a" / "weights.json")
    content = {
        "policy": "stages",
        "stages": [
            {"until": 5, "policy": "skill_it:../graph.json,eta=1"},
            {"until": 6, "policy": "fixed:weights.json"},
            {"weights": "weights.json"},
        ],
    }
    expected = policies.stages([(5, policies.skill_it(graph, eta=1.0)), (6, EQUAL), (None, EQUAL)])
    place = written(content, tmp_path / "a" / "policy.json")
    assert read_policy(place).arguments == expected.arguments
    assert read_policy(f"{place}+floor:least=0.1").name == "stages+floor"


def by_graphs(folder: Path) -> dict[str, Any]:
    """Write a graph of groups and a graph of skills, each with a name more than needed, and return a policy that needs both."""
    SkillGraph(("code", "web", "old"), ("code", "web"), [[1.0, 0.5], [0.0, 1.0], [1.0, 1.0]]).save(
        folder / "groups.json"
    )
    SkillGraph(("code/c", "code/old", "code/python"), ("code/c", "code/python"), [[1, 0.5], [0.5, 0], [0, 1]]).save(
        folder / "skills.json"
    )
    return {
        "policy": "by_group",
        "outer": {"policy": "skill_it", "graph": "groups.json", "eta": 0.5},
        "inner": {"code": "skill_it:skills.json,eta=1", "web": "stratified"},
        "groups": {"code": ["code/c", "code/python"], "web": ["web"]},
    }


def test_a_graph_is_reduced_to_the_groups_or_to_the_skills_of_its_group(tmp_path: Path) -> None:
    content = by_graphs(tmp_path)
    for groups in (content["groups"], "prefix"):
        place = written({**content, "groups": groups}, tmp_path / "policy.json")
        policy: Any = read_policy(place, skills=SKILLS)
        assert policy.outer.graph.train_skills == ("code", "web")
        assert policy.inner["code"].graph.train_skills == ("code/c", "code/python")
        if groups != "prefix":  # there, the columns of the inner graph must name all skills
            policy.init(SKILLS, (10, 10, 10))
        graphs = [str(tmp_path / "groups.json"), str(tmp_path / "skills.json")]
        record = json.loads(json.dumps(policy.arguments))
        again = policy_of_record("by_group", record, graphs=graphs, skills=SKILLS)
        assert again.arguments == policy.arguments
        with pytest.raises(PolicyError, match="is no given graph"):
            policy_of_record("by_group", record, graphs=graphs[:1], skills=SKILLS)
    named = parse_policy(str(place), skills=SKILLS, targets=(), draws=100)
    assert [Path(graph).name for graph in named.graphs] == ["groups.json", "skills.json"]
    with pytest.raises(SkillshardError, match=r"'web' .*is not among the 3 training skills"):
        policy_given(f"skill_it:{tmp_path}/skills.json,eta=1", Context(skills=SKILLS))


def test_an_edited_record_of_a_policy_of_policies_is_refused() -> None:
    record = json.loads(json.dumps(read_policy(json.dumps(STAGES)).arguments))
    for edited in ({**record, "stages": 3}, {"unit": "draws"}, {**record, "extra": 1}):
        with pytest.raises(PolicyError, match="the record holds no arguments of policy stages"):
            policy_of_record("stages", edited)


def test_mix_lists_the_stream_that_the_mixer_of_the_same_policy_gives(shards: ShardSet, tmp_path: Path) -> None:
    weights = {"add": 0.1, "carry": 0.6, "negate": 0.3}
    content = {
        "policy": "stages",
        "unit": "steps",
        "blend": "linear",
        "stages": [{"until": 10, "policy": "proportional"}, {"until": 12, "policy": "unimax:epochs=2"}, {"weights": weights}],
    }  # fmt: skip
    place = written(content, tmp_path / "policy.json")
    output = works(
        "mix", shards.root, "--policy", place, "--draws", 300, "--round-draws", 64, "--step-draws", 16, "--ledger", tmp_path / "run"
    )  # fmt: skip
    stages = [(10, policies.proportional()), (12, policies.unimax(draws=300, epochs=2.0)), (None, weights)]
    policy = policies.stages(stages, unit="steps", blend="linear")
    mixer = Mixer(shards, policy, ledger=tmp_path / "other", round_draws=64, step_draws=16)
    for number in range(5):
        mixer.round(number)
    assert [json.loads(line)["id"] for line in output.splitlines()] == mixer.ids(0, 300)
    assert works("replay", tmp_path / "run").endswith("5 rounds decided again, all as the record says.\n")
    assert "give --step-draws" in fails("mix", shards.root, "--policy", place, "--draws", 300)
    assert "policy loss_order reads losses" in fails(
        "mix", shards.root, "--draws", 9, "--policy", json.dumps({**GROUPS, "outer": "loss_order:eta=1"})
    )
    assert "write --tau there too" in fails("mix", shards.root, "--draws", 9, "--policy", place, "--tau", 2)
    assert "FILE.json" in fails("mix", shards.root, "--draws", 9, "--policy", "stages")
    unknown = {**content, "stages": [{"weights": {"ad": 1, "carry": 1, "negate": 1}}]}
    assert "stage 1: the fixed weights do not name the skills of the mix: unknown: 'ad' (did you mean 'add'?)" in fails(
        "mix", shards.root, "--draws", 9, "--step-draws", 4, "--policy", json.dumps(unknown)
    )


def test_weights_and_export_take_a_file(shards: ShardSet, tmp_path: Path) -> None:
    content = {**GROUPS, "groups": {"sums": ["add", "carry"], "other": ["negate"]}}
    place = written(content, tmp_path / "policy.json")
    works("weights", shards.root, "--policy", place, "--out", tmp_path / "weights.json")
    weights = json.loads((tmp_path / "weights.json").read_text())["weights"]
    num = {skill: len(shards.train[skill]) for skill in ("add", "carry")}
    assert weights == pytest.approx(
        {**{skill: 0.5 * own / sum(num.values()) for skill, own in num.items()}, "negate": 0.5}
    )
    arguments = ["export", shards.root, "--format", "jsonl", "--draws", 50, "--workers", 1]
    works(*arguments, "--policy", place, "--out", tmp_path / "by-file")
    works(*arguments, "--policy", "fixed", "--weights", tmp_path / "weights.json", "--out", tmp_path / "by-weights")
    texts = [
        [json.loads(line)["id"] for path in sorted((tmp_path / name).glob("**/*.jsonl")) for line in path.read_text().splitlines()]
        for name in ("by-file", "by-weights")
    ]  # fmt: skip
    assert len(texts[0]) == 50 and texts[0] == texts[1]


def test_weights_of_stages_are_shown_at_a_draw(shards: ShardSet, tmp_path: Path) -> None:
    stages = [
        {"until": 4, "weights": {"add": 1, "carry": 0, "negate": 0}},
        {"weights": {"add": 0, "carry": 1, "negate": 0}},
    ]
    place = written(
        {"policy": "stages", "unit": "steps", "blend": "linear", "stages": stages}, tmp_path / "policy.json"
    )
    command = ["weights", shards.root, "--policy", place, "--step-draws", 8]
    assert "change during a run: give --at, the draw" in fails(*command)
    shown = {
        line.split()[0]: line.split()[-1] for line in works(*command, "--at", 23).splitlines() if len(line.split()) == 3
    }
    # The round is draw 23 alone, whose middle is at 23.5 of 32 draws.
    assert float(shown["carry"]) == pytest.approx(23.5 / 32, abs=1e-6)
    assert float(shown["add"]) == pytest.approx(8.5 / 32, abs=1e-6)
    assert "transform smoothing follows the rounds before" in fails(
        "weights", shards.root, "--policy", f"{place}+smoothing:keep=0.5", "--step-draws", 8, "--at", 3
    )
    assert skillshard(*command, "--at", 3, "--out", tmp_path / "weights.json").code == 2


def trained(shards: ShardSet, policy: Policy, ledger: Path, **changes: Any) -> Mixer:
    """Train 13 steps of 16 draws with a report every 4 steps."""
    mixer = Mixer(shards, policy, ledger=ledger, round_draws=64, step_draws=16, **changes)
    for step in range(13):
        if step % 4 == 0:
            mixer.report(step, {skill: 3.0 / (1 + number + step / 10) for number, skill in enumerate(shards.skills)})
        mixer.batch(step * 16, 16)
    return mixer


def test_a_run_under_stages_and_groups_replays_from_its_record_and_its_graphs(shards: ShardSet, tmp_path: Path) -> None:
    SkillGraph(("sums", "other"), ("sums", "other"), [[1.0, 0.5], [0.0, 1.0]]).save(tmp_path / "groups.json")
    SkillGraph.chain(("add", "carry")).save(tmp_path / "sums.json")
    groups = {"sums": ["add", "carry"], "other": ["negate"]}
    content = {
        "policy": "stages",
        "unit": "steps",
        "blend": "cosine",
        "stages": [
            {"until": 6, "policy": {
                "policy": "by_group",
                "outer": "skill_it:groups.json,eta=0.5",
                "inner": {"sums": "skill_it:sums.json,eta=1", "other": "stratified"},
                "groups": groups,
            }},
            {"until": 9, "policy": "loss_order:eta=0.5"},
            {"weights": {"add": 3, "carry": 2, "negate": 1}},
        ],
        "transforms": ["floor:least=0.01"],
    }  # fmt: skip
    place = written(content, tmp_path / "policy.json")
    run = tmp_path / "run"
    trained(shards, read_policy(place, skills=shards.skills), run)
    graphs = ["--graph", tmp_path / "sums.json", "--graph", tmp_path / "groups.json"]
    assert works("replay", run, *graphs).endswith("4 rounds decided again, all as the record says.\n")
    # The same file, whose steps become draws by the reports of the run, is the policy of the run.
    assert works("replay", run, "--policy", place).endswith("all as the record says.\n")
    assert "give the file of the graph by --graph." in fails("replay", run)
    trained(shards, policies.loss_order(eta=0.3), tmp_path / "other")
    other = replay(tmp_path / "other", read_policy(place))
    rounds = open_records(DirectoryLedger(run)).rounds
    assert other.is_other and [own.decided for own in other.rounds] == [record.weights for record in rounds]


def test_continue_says_whether_a_policy_keeps_its_state_and_writes_nothing_if_it_does_not_fit(
    shards: ShardSet, tmp_path: Path
) -> None:
    stages = [{"until": 5, "policy": "loss_order:eta=0.5"}, {"weights": {"add": 3, "carry": 2, "negate": 1}}]
    place = written({"policy": "stages", "unit": "steps", "stages": stages}, tmp_path / "policy.json")
    policy = read_policy(place)
    trained(shards, policy, tmp_path / "run")
    command = ["continue", tmp_path / "run", "--draw", 128, "--shards", shards.root]
    assert "policy stages is the policy of the run, and keeps its state.\n" in works(
        *command, "--policy", place, "--out", tmp_path / "same"
    )
    mixer = Mixer(shards, policy, ledger=tmp_path / "same", round_draws=64, step_draws=16)
    handover = json.loads((tmp_path / "same" / "handover.json").read_text())
    assert mixer.policy.arguments == handover["policy_arguments"]
    assert "policy loss_order begins with the losses of step 8.\n" in works(
        *command, "--policy", "loss_order:eta=1", "--out", tmp_path / "other"
    )
    assert "policy stratified begins with a state of its own.\n" in works(
        *command, "--policy", "stratified", "--out", tmp_path / "static"
    )
    wrong = json.dumps({"policy": "stages", "stages": [{"weights": {"ad": 1}}]})
    assert "did you mean 'add'?" in fails(*command, "--policy", wrong, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert skillshard(*command[:4], "--policy", "stratified", "--out", tmp_path / "none").code == 2


def test_a_comparison_reads_files_and_refuses_what_a_trial_would_refuse(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = parse_policy(json.dumps(STAGES), skills=SKILLS, targets=(), draws=100)
    assert named.policy.arguments == read_policy(json.dumps(STAGES)).arguments and named.graphs == ()
    with pytest.raises(PolicyError, match="a comparison has no policy 'aioli'"):
        parse_policy(
            json.dumps({"policy": "stages", "stages": [{"policy": "aioli:eta=1,period_rounds=20"}]}),
            skills=SKILLS,
            targets=(),
            draws=100,
        )
    arguments = ["compare", shards.root, "--steps", 2, "--seeds", 2, "--out", tmp_path / "C", "--policy", "stratified"]
    written({"policy": "stages", "stages": [{"weights": {"ad": 1}}]}, tmp_path / "policy.json")
    monkeypatch.chdir(tmp_path)  # a long place is shortened in the sentence
    outcome = skillshard(*arguments, "--policy", "policy.json")
    assert outcome.code == 1
    assert "policy policy.json: stage 1: the fixed weights do not name the skills" in outcome.sentence
    assert not (tmp_path / "C").exists()


def test_a_graph_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    written({"add": 1}, tmp_path / "graph.json")
    with pytest.raises((PolicyError, GraphError), match=r"policy.json, outer.graph: .*graph.json"):
        place = written(
            {**GROUPS, "outer": {"policy": "skill_it", "graph": "graph.json", "eta": 1}}, tmp_path / "policy.json"
        )
        read_policy(place)


def test_the_word_identity_is_the_graph_in_which_each_skill_helps_itself_alone(tmp_path: Path) -> None:
    expected = policies.skill_it(SkillGraph.identity(SKILLS), eta=0.5).arguments
    in_json = written({"policy": "skill_it", "graph": "identity", "eta": 0.5}, tmp_path / "policy.json")
    for text in ("skill_it:identity,eta=0.5", "skill_it:eta=0.5,graph=identity", str(in_json)):
        assert read_policy(text, skills=SKILLS).arguments == expected
        assert parse_policy(text, skills=SKILLS, targets=(), draws=1).graphs == ()
    (tmp_path / "identity").write_bytes(SkillGraph.chain(SKILLS).to_bytes())
    of_file = read_policy(f"skill_it:{tmp_path}/identity,eta=0.5", skills=SKILLS)
    assert of_file.arguments == policies.skill_it(SkillGraph.chain(SKILLS), eta=0.5).arguments


def test_the_identity_graph_has_the_columns_of_the_targets() -> None:
    policy = parse_policy("skill_it:identity,eta=0.5", skills=SKILLS, targets=("web",), draws=1).policy
    assert policy.eval_skills == ("web",)
    with pytest.raises(
        GraphError,
        match=r"policy skill_it:identity,eta=0.5: .*'wab' \(did you mean 'web'\?\).*a target must be a skill of the mix",
    ):
        parse_policy("skill_it:identity,eta=0.5", skills=SKILLS, targets=("wab",), draws=1)


def test_the_identity_graph_needs_the_skills_and_a_missing_graph_names_the_word() -> None:
    with pytest.raises(
        GraphError, match=r"the graph 'identity' needs the skills of the mix, .* give `skills`, or the file"
    ):
        read_policy("skill_it:identity,eta=0.5")
    with pytest.raises(PolicyError, match=r"\(missing: graph\)\. A graph is a file, or the word 'identity'"):
        read_policy("skill_it:eta=0.5", skills=SKILLS)


def test_a_run_with_the_identity_graph_of_its_skills_is_replayed_without_a_file(
    shards: ShardSet, tmp_path: Path
) -> None:
    policy = read_policy("skill_it:identity,eta=0.5", skills=shards.skills)
    mixer = Mixer(shards, policy, ledger=tmp_path / "run", round_draws=32, initial_losses=False)
    mixer.batch(0, 32)
    works("replay", tmp_path / "run")
