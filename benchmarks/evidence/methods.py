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

from pathlib import Path

import numpy as np

from benchmarks.evidence.settings import CURRICULA, INITIAL, LEARNED, LONG, PROBING, Setting
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
DIRECT, DIRECT_SHARE = "direct edges", 0.1
GRAPH_SEEDS, OF_SEEDS = (0, 1, 2, 3, 4), " of 5 seeds"
PUBLISHED = {
    "lego": ((0, 0, 0, 0, 0), (0.5, 0, 0.5, 0.5, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
    "addition": ((0, 0, 0), (0.5, 0, 0), (0, 0, 0)),
}
"""Edges of the authors' scripts between different skills. Each skill helps itself by 1."""


def policy_of(setting: Setting, method: str, skills: tuple[str, ...], graphs: Path) -> Policy:
    """Return the policy of a method.

    Args:
        skills: Skills of the shards.
        graphs: Folder of the learned graphs, with a file METHOD.json each.
    """
    method = method.removesuffix(INITIAL)
    measured = measured_names(setting) or skills
    draws = setting.steps * setting.batch_size
    if method == "stratified":
        return policies.stratified()
    if method == "natural":
        return (
            policies.fixed(dict(zip(skills, map(float, setting.natural), strict=True)))
            if setting.natural
            else policies.proportional()
        )
    if method == "target-only":
        return policies.fixed({skill: float(skill in measured) for skill in skills})
    if method in CURRICULA:
        schedule = getattr(policies, method)
        return schedule({skill: float(place) for place, skill in enumerate(skills)}, draws=draws)
    if method == "odm":
        return policies.odm(warmup_steps=setting.eval_every)
    if method == "loss order":
        return policies.loss_order(eta=setting.eta, edge=STRONGEST, window=WINDOW, reduce=setting.reduce)
    if method in PROBING:
        probing = probes(setting, len(skills))
        if method == "aioli":
            return policies.aioli(eta=0.2, eval_skills=measured, **probing)
        return policies.graph_refresh(_own_edges(skills, measured), eta=setting.eta, window=WINDOW, **probing)
    if method.startswith("skill-stratified"):
        by = method.partition(" by ")[2]
        return policies.skill_stratified(
            learned_graph(*_places(by, graphs)) if by else true_graph(setting, _needed(setting))
        )
    if method == DIRECT:
        graph = direct_graph(*_places(method, graphs))
    else:
        graph = learned_graph(*_places(method, graphs)) if graph_of(method) else true_graph(setting, method, skills)
    mode = "static" if method == "static" else "official"
    return policies.skill_it(graph, eta=setting.eta, window=WINDOW, reduce=setting.reduce, mode=mode)


def _own_edges(skills: tuple[str, ...], measured: tuple[str, ...]) -> SkillGraph:
    """Return the graph in which each skill helps only itself."""
    return SkillGraph(skills, measured, is_same(skills, measured).astype(float))


def _needed(setting: Setting) -> str:
    """Name the true graph with the skills that a measured skill needs. For digits the authors name a later digit."""
    return "published" if setting.corpus == "addition" else "prerequisites"


def graph_of(method: str) -> str | None:
    """Return the learned graph that a method needs, or None.

    >>> graph_of("linear of 5 seeds"), graph_of("skill-stratified by leave-one-out"), graph_of("chain")
    ('linear', 'leave-one-out', None)
    >>> graph_of("direct edges")
    'long-leave-one-out'
    """
    if method == DIRECT:
        return LONG
    name = (method.partition(" by ")[2] or method).removesuffix(OF_SEEDS)
    return name if name in LEARNED else None


def graph_seeds(method: str, seed: int) -> tuple[int, ...]:
    """Return the seeds of the graphs whose mean a method takes, in a training of the given seed.

    >>> graph_seeds("linear", 7), graph_seeds("linear of 5 seeds", 7), graph_seeds("chain", 7)
    ((7,), (0, 1, 2, 3, 4), ())
    """
    if graph_of(method) is None:
        return ()
    return GRAPH_SEEDS if method.endswith(OF_SEEDS) else (seed,)


def _places(method: str, graphs: Path) -> list[Path]:
    """List the files of a method's learned graphs. `graphs` is WORK/SETTING/SEED/graphs."""
    seeds = graph_seeds(method, int(graphs.parent.name))
    return [graphs.parent.with_name(str(seed)) / "graphs" / f"{graph_of(method)}.json" for seed in seeds]


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
    if method in PROBING:
        return PROBE_STEPS
    return setting.eval_every if method == "odm" else setting.round_steps


def begins_with_losses(method: str) -> bool:
    """Return whether the first decision of a method uses the losses before the first step, as Algorithm 1 does.

    The other methods were trained and published before a run could begin with initial losses, and stay unchanged.

    >>> begins_with_losses("chain"), begins_with_losses("chain with initial losses")
    (False, True)
    """
    return method.endswith(INITIAL)


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
    initial, method = begins_with_losses(method), method.removesuffix(INITIAL)
    if method in PROBING:
        when = probes(setting, num_skills)
        steps |= {
            number * PROBE_STEPS
            for number in range(when["warmup_rounds"], setting.steps // PROBE_STEPS)
            if (number - when["warmup_rounds"]) % when["period_rounds"] <= when["sweeps"] * num_skills
        }
    elif method != "odm":
        steps = {
            end - before * every
            for end in range(setting.round_steps, setting.steps, setting.round_steps)
            for before in range(WINDOW)
        }
    return sorted(steps | {0} if initial else steps)


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
