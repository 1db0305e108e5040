"""The methods of the evidence. Each method is a policy of skillshard with the numbers of the setting.

    natural            the proportions in which the skills occur
    stratified         equal weights
    curriculum, anti_curriculum, skill_curriculum
                       the true order of the skills (of the chain, of the digits), which the losses of an untrained model do not show
    identity           SKILL-IT without a graph
    loss order         SKILL-IT with a graph by the latest losses: 0.5 from each skill to the skill of the next larger loss
    chain              SKILL-IT with the true graph: 1 on the diagonal, 0.5 from each skill to the next
    published          SKILL-IT with the authors' graph
    static             SKILL-IT's first weights by the chain, for the whole run (T = 1)
    leave-one-out, linear, brute-force
                       SKILL-IT with a graph learned by this method: diagonal 1, strongest edge 0.5, negative edges 0
    direct edges       the order of a leave-one-out graph of long trials alone: 0.5 for each edge of at least a tenth of the
                       strongest edge that no path through other skills explains
    METHOD with initial losses
                       the same, and the first decision uses the losses before the first step, as Algorithm 1 does
    METHOD of 5 seeds  the same with the mean effects of seeds 0 to 4, whatever the seed of the training
    refresh            SKILL-IT with a graph that probe rounds estimate during the run, begun with the identity
    odm, aioli         the other live methods
    target-only        the measured skill alone
    skill-stratified   equal weights for the measured skill and all skills before (addition: the skills of the authors' graph), or, out
                       of domain, for the skills of a learned graph
    prerequisites      SKILL-IT with 1 for the measured skill and 0.5 for each earlier skill

SKILL-IT is as in the authors' code: the sum (in fine-tuning the mean) over the latest 3 evaluations, and 6 changes of the weights in a
training. ODM decides at every evaluation. Aioli and refresh probe in rounds of 5 steps (the authors use 4 to 10). The first period ends
after a sixth of the training. Probes take about a tenth of every later period. A period is a sixth of the training, or longer if a probe of
each skill would fill more than a quarter of the period.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.evidence.settings import CURRICULA, INITIAL, LEARNED, LONG, Setting
from skillshard import policies
from skillshard.graph.derive import derive_again
from skillshard.graph.edges import EdgeRule, scaled_edges
from skillshard.graph.skill_graph import SkillGraph, read_graph
from skillshard.graph.statistics import is_same
from skillshard.policies import Policy
from skillshard.synthetic.lego import skill_names

# SKILL-IT's window, in evaluations, as in the authors' scripts.
WINDOW = 3
# Aioli's authors probe for 4 to 10 steps.
PROBE_STEPS = 5
# Weight of the strongest edge of a learned graph, as of each edge of the authors' graphs.
STRONGEST = 0.5
DIRECT_SHARE = 0.1
GRAPH_SEEDS = (0, 1, 2, 3, 4)
PUBLISHED = {
    "lego": ((0, 0, 0, 0, 0), (0.5, 0, 0.5, 0.5, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
    "addition": ((0, 0, 0), (0.5, 0, 0), (0, 0, 0)),
}
"""Edges of the authors' scripts between different skills. Each skill helps itself by 1."""


@dataclass(frozen=True)
class Mix:
    """The facts from which a method makes its policy.

    Attributes:
        setting: Setting of the comparison.
        skills: Training skills of the shards.
        graphs: Files of the learned graphs of the method.
    """

    setting: Setting
    skills: tuple[str, ...]
    graphs: list[Path]

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the measured skills."""
        return measured_names(self.setting) or self.skills


@dataclass(frozen=True)
class Method:
    """A method of the tables.

    Attributes:
        policy: Function that makes the policy.
        graph: Kind of the learned graph that the method needs. None: the method needs no learned graph.
        graph_seeds: Seeds whose graphs the method takes the mean of. None: the seed of the training.
        is_skill_it: Whether the policy is SKILL-IT, so that a learned graph is comparable with the true graph.
        decides: Points at which the weights change: six times in a training, at every evaluation, or in short rounds that probe.
        initial_losses: Whether the first decision uses the losses before the first step.
    """

    policy: Callable[[Mix], Policy]
    graph: str | None = None
    graph_seeds: tuple[int, ...] | None = None
    is_skill_it: bool = False
    decides: Literal["six times", "at evaluations", "by probes"] = "six times"
    initial_losses: bool = False


def policy_of(setting: Setting, method: str, skills: tuple[str, ...], graphs: Path) -> Policy:
    """Make the policy of a method.

    Args:
        setting: Setting of the comparison.
        method: Name in `METHODS`.
        skills: Training skills of the shards.
        graphs: Folder of learned graphs, METHOD.json each: WORK/SETTING/SEED/graphs.
    """
    return METHODS[method].policy(Mix(setting, skills, _places(method, graphs)))


def _natural(mix: Mix) -> Policy:
    if not mix.setting.natural:
        return policies.proportional()
    return policies.fixed(dict(zip(mix.skills, map(float, mix.setting.natural), strict=True)))


def _target_only(mix: Mix) -> Policy:
    return policies.fixed({skill: float(skill in mix.measured) for skill in mix.skills})


def _by_true_order(schedule: Callable[..., Policy]) -> Callable[[Mix], Policy]:
    def policy(mix: Mix) -> Policy:
        draws = mix.setting.steps * mix.setting.batch_size
        return schedule({skill: float(place) for place, skill in enumerate(mix.skills)}, draws=draws)

    return policy


def _odm(mix: Mix) -> Policy:
    return policies.odm(warmup_steps=mix.setting.eval_every)


def _loss_order(mix: Mix) -> Policy:
    return policies.loss_order(eta=mix.setting.eta, edge=STRONGEST, window=WINDOW, reduce=mix.setting.reduce)


def _aioli(mix: Mix) -> Policy:
    return policies.aioli(eta=0.2, eval_skills=mix.measured, **probes(mix.setting, len(mix.skills)))


def _refresh(mix: Mix) -> Policy:
    own = _own_edges(mix.skills, mix.measured)
    return policies.graph_refresh(own, eta=mix.setting.eta, window=WINDOW, **probes(mix.setting, len(mix.skills)))


def _skill_stratified(mix: Mix) -> Policy:
    return policies.skill_stratified(true_graph(mix.setting, _needed(mix.setting)))


def _skill_stratified_by_learned(mix: Mix) -> Policy:
    return policies.skill_stratified(learned_graph(*mix.graphs))


def _skill_it(mix: Mix, graph: SkillGraph, *, mode: Literal["official", "static"] = "official") -> Policy:
    return policies.skill_it(graph, eta=mix.setting.eta, window=WINDOW, reduce=mix.setting.reduce, mode=mode)


def _by_true_graph(kind: str) -> Method:
    return Method(lambda mix: _skill_it(mix, true_graph(mix.setting, kind, mix.skills)), is_skill_it=True)


def _by_learned_graph(kind: str, graph_seeds: tuple[int, ...] | None = None) -> Method:
    return Method(lambda mix: _skill_it(mix, learned_graph(*mix.graphs)), kind, graph_seeds, is_skill_it=True)


def _own_edges(skills: tuple[str, ...], measured: tuple[str, ...]) -> SkillGraph:
    """Return the graph in which each skill helps only itself."""
    return SkillGraph(skills, measured, is_same(skills, measured).astype(float))


def _needed(setting: Setting) -> str:
    """Name the true graph with the skills that a measured skill needs. For digits the authors name a later digit."""
    return "published" if setting.corpus == "addition" else "prerequisites"


def graph_of(method: str) -> str | None:
    """Return the kind of the learned graph that a method needs, or None.

    >>> graph_of("linear of 5 seeds"), graph_of("skill-stratified by leave-one-out"), graph_of("chain")
    ('linear', 'leave-one-out', None)
    >>> graph_of("direct edges")
    'long-leave-one-out'
    """
    return METHODS[method].graph


def graph_seeds(method: str, seed: int) -> tuple[int, ...]:
    """Return the seeds whose graphs a method takes the mean of, in a training of this seed.

    >>> graph_seeds("linear", 7), graph_seeds("linear of 5 seeds", 7), graph_seeds("chain", 7)
    ((7,), (0, 1, 2, 3, 4), ())
    """
    described = METHODS[method]
    if described.graph is None:
        return ()
    return described.graph_seeds or (seed,)


def _places(method: str, graphs: Path) -> list[Path]:
    """Return the files of the learned graphs of a method. `graphs` is WORK/SETTING/SEED/graphs."""
    kind = graph_of(method)
    if kind is None:
        return []
    seeds = graph_seeds(method, int(graphs.parent.name))
    return [graphs.parent.with_name(str(seed)) / "graphs" / f"{kind}.json" for seed in seeds]


def names_of(setting: Setting, numbers: tuple[int, ...]) -> tuple[str, ...]:
    names = skill_names(setting.k) if setting.k else ()
    return tuple(names[number - 1] for number in numbers)


def measured_names(setting: Setting) -> tuple[str, ...]:
    """Return the names of the measured skills, or () for real text. Skills of another length have names of their own."""
    if not setting.measured_k:
        return names_of(setting, setting.measured)
    return tuple(f"{setting.measured_k}/{skill_names(setting.measured_k)[number - 1]}" for number in setting.measured)


def probes(setting: Setting, num_skills: int) -> dict[str, int]:
    """Return the rounds in which a method probes.

    >>> from benchmarks.evidence.settings import SETTINGS
    >>> probes(SETTINGS["ordered LEGO k=5"], 5)
    {'period_rounds': 50, 'sweeps': 1, 'warmup_rounds': 50}
    """
    first = setting.round_steps // PROBE_STEPS
    period_rounds = max(first, 4 * num_skills)
    return {
        "period_rounds": period_rounds,
        "sweeps": max(1, period_rounds // (10 * num_skills)),
        "warmup_rounds": first,
    }


def round_steps(setting: Setting, method: str) -> int:
    """Return the number of optimizer steps between two decisions."""
    steps = {"six times": setting.round_steps, "at evaluations": setting.eval_every, "by probes": PROBE_STEPS}
    return steps[METHODS[method].decides]


def begins_with_losses(method: str) -> bool:
    """Return whether the first decision of a method uses the losses before the first step, as Algorithm 1 does.

    The other methods were trained and published before a run could begin with initial losses, and stay unchanged.

    >>> begins_with_losses("chain"), begins_with_losses("chain with initial losses")
    (False, True)
    """
    return METHODS[method].initial_losses


def read_at(setting: Setting, method: str, num_skills: int) -> list[int]:
    """Return the steps at which a method reads losses. A method pays for these evaluations.

    SKILL-IT reads the evaluations in the window when weights change. A method that probes also reads the evaluations before the first probe
    and after each probe. ODM reads all evaluations.

    >>> from benchmarks.evidence.settings import SETTINGS
    >>> setting = SETTINGS["ordered LEGO k=5"]
    >>> read_at(setting, "chain", 5)[:4], read_at(setting, "aioli", 5)[8:15]
    ([200, 225, 250, 450], [225, 250, 255, 260, 265, 270, 275])
    """
    every = setting.eval_every
    steps = set(range(every, setting.steps, every))
    described = METHODS[method]
    if described.decides == "by probes":
        when = probes(setting, num_skills)
        steps |= {
            number * PROBE_STEPS
            for number in range(when["warmup_rounds"], setting.steps // PROBE_STEPS)
            if (number - when["warmup_rounds"]) % when["period_rounds"] <= when["sweeps"] * num_skills
        }
    elif described.decides == "six times":
        steps = {
            end - before * every
            for end in range(setting.round_steps, setting.steps, setting.round_steps)
            for before in range(WINDOW)
        }
    return sorted(steps | {0} if described.initial_losses else steps)


def true_graph(setting: Setting, method: str, skills: tuple[str, ...] = ()) -> SkillGraph:
    """Return the given graph of a method: rows are the trained skills, columns the measured skills."""
    if setting.is_text:
        return SkillGraph.identity(skills)
    edges = np.eye(setting.k)
    if method in ("chain", "static"):
        edges += 0.5 * np.eye(setting.k, k=1)
    elif method == "prerequisites":
        edges += 0.5 * np.triu(np.ones((setting.k, setting.k)), k=1)
    elif method == "published":
        edges += np.array(PUBLISHED[setting.corpus.partition("-")[0]])
    rows, columns = np.array(setting.trained) - 1, np.array(setting.measured) - 1
    return SkillGraph(names_of(setting, setting.trained), measured_names(setting), edges[np.ix_(rows, columns)])


def learned_graph(*places: Path) -> SkillGraph:
    """Return the mean of the learned graphs of one or several seeds."""
    rule = EdgeRule("absolute", None, "curve", clamp=False, off_diagonal=None, drop_uncertain=False)
    graphs = [derive_again(read_graph(place), rule=rule, name=place.name) for place in places]
    return mean_graph([SkillGraph(graph.train_skills, graph.eval_skills, graph.edges) for graph in graphs])


def direct_graph(place: Path) -> SkillGraph:
    """Return the direct edges of a learned graph."""
    rule = EdgeRule(
        "absolute", None, "curve", clamp=True, off_diagonal=STRONGEST, drop_uncertain=False, direct=DIRECT_SHARE
    )
    graph = derive_again(read_graph(place), rule=rule, name=place.name)
    return SkillGraph(graph.train_skills, graph.eval_skills, graph.edges)


def mean_graph(effects: list[SkillGraph]) -> SkillGraph:
    """Return the scaled mean of effects. A negative mean becomes 0."""
    rows, columns = effects[0].train_skills, effects[0].eval_skills
    mean = np.mean([effect.edges for effect in effects], axis=0)
    edges, _ = scaled_edges(np.maximum(mean, 0), is_same(rows, columns), STRONGEST)
    return SkillGraph(rows, columns, edges)


_WITHOUT_VARIATIONS = {
    "natural": Method(_natural),
    "stratified": Method(lambda mix: policies.stratified()),
    "target-only": Method(_target_only),
    **{name: Method(_by_true_order(getattr(policies, name))) for name in CURRICULA},
    "loss order": Method(_loss_order),
    "odm": Method(_odm, decides="at evaluations"),
    "aioli": Method(_aioli, decides="by probes"),
    "refresh": Method(_refresh, decides="by probes"),
    "skill-stratified": Method(_skill_stratified),
    **{f"skill-stratified by {kind}": Method(_skill_stratified_by_learned, kind) for kind in LEARNED},
    **{name: _by_true_graph(name) for name in ("identity", "chain", "prerequisites", "published")},
    "static": Method(lambda mix: _skill_it(mix, true_graph(mix.setting, "chain"), mode="static"), is_skill_it=True),
    **{kind: _by_learned_graph(kind) for kind in LEARNED},
    **{f"{kind} of 5 seeds": _by_learned_graph(kind, GRAPH_SEEDS) for kind in LEARNED},
    "direct edges": Method(lambda mix: _skill_it(mix, direct_graph(*mix.graphs)), LONG, is_skill_it=True),
}
METHODS = {
    **_WITHOUT_VARIATIONS,
    **{f"{name}{INITIAL}": replace(method, initial_losses=True) for name, method in _WITHOUT_VARIATIONS.items()},
}
"""The methods by their names in the tables."""
