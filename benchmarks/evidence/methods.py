"""The methods: each is a policy of skillshard with the setting's numbers.

    natural            the proportions in which the skills occur
    stratified         equal weights
    curriculum, anti_curriculum, skill_curriculum
                       by the true order of the skills (of the chain, of the digits), which no loss of an untrained model tells
    identity           SKILL-IT without a graph
    loss order         SKILL-IT with a graph that the latest losses tell: 0.5 from each skill to the one of the next larger loss
    chain              SKILL-IT with the true one: 1 on the diagonal, 0.5 from each skill to the next
    published          SKILL-IT with the authors' graph
    static             SKILL-IT's first weights by the chain, for the whole run (T = 1)
    leave-one-out, linear, brute-force
                       SKILL-IT with a graph learned that way: diagonal 1, strongest edge 0.5, negative edges 0
    direct edges       the order alone that a leave-one-out graph of long runs tells: 0.5 for edges of at least a tenth of the
                       strongest that no path through other skills explains
    METHOD with initial losses
                       the same, where the first decision uses the losses before the first step, as Algorithm 1 does
    METHOD of 5 seeds  the same with the mean effects of seeds 0 to 4, whatever the seed of the training
    refresh            SKILL-IT with a graph that probe rounds estimate during the run, begun with the identity
    odm, aioli         the other live methods
    target-only        the measured skill alone
    skill-stratified   equal weights for the measured skill and all before it (addition: what the authors' graph names); or, out
                       of domain, for those that a learned graph names
    prerequisites      SKILL-IT with 1 for the measured skill and 0.5 for each before it

SKILL-IT is the authors' code's: the sum (fine-tuning: the mean) over the latest 3 evaluations, weights that change 6 times in a
training. ODM decides at every evaluation. Aioli and refresh probe, in rounds of 5 steps (the authors: 4 to 10), after a sixth of the training
for about a tenth of every period: another sixth, or longer where one probe of each skill would fill more than a quarter of it.
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

WINDOW = 3
PROBE_STEPS = 5
STRONGEST = 0.5
DIRECT, DIRECT_SHARE = "direct edges", 0.1
GRAPH_SEEDS, OF_SEEDS = (0, 1, 2, 3, 4), " of 5 seeds"
PUBLISHED = {
    "lego": ((0, 0, 0, 0, 0), (0.5, 0, 0.5, 0.5, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
    "addition": ((0, 0, 0), (0.5, 0, 0), (0, 0, 0)),
}
"""Of the authors' scripts: which skill helps which other one; each helps itself by 1."""


def policy_of(setting: Setting, method: str, skills: tuple[str, ...], graphs: Path) -> Policy:
    """The policy of a method.

    Args:
        skills: of the shards.
        graphs: folder of learned graphs, METHOD.json each.
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
    """The graph of which nothing is known but that a skill helps itself."""
    return SkillGraph(skills, measured, is_same(skills, measured).astype(float))


def _needed(setting: Setting) -> str:
    """The true graph that names what a measured skill needs; of digits the authors' names a later one."""
    return "published" if setting.corpus == "addition" else "prerequisites"


def graph_of(method: str) -> str | None:
    """The learned graph that a method needs, if any.

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
    """Whose graphs a method takes the mean of, in a training of this seed.

    >>> graph_seeds("linear", 7), graph_seeds("linear of 5 seeds", 7), graph_seeds("chain", 7)
    ((7,), (0, 1, 2, 3, 4), ())
    """
    if graph_of(method) is None:
        return ()
    return GRAPH_SEEDS if method.endswith(OF_SEEDS) else (seed,)


def _places(method: str, graphs: Path) -> list[Path]:
    """The learned graphs of a method; `graphs` is WORK/SETTING/SEED/graphs."""
    seeds = graph_seeds(method, int(graphs.parent.name))
    return [graphs.parent.with_name(str(seed)) / "graphs" / f"{graph_of(method)}.json" for seed in seeds]


def names_of(setting: Setting, numbers: tuple[int, ...]) -> tuple[str, ...]:
    names = skill_names(setting.k) if setting.k else ()
    return tuple(names[number - 1] for number in numbers)


def measured_names(setting: Setting) -> tuple[str, ...]:
    """Of the measured skills; empty for real text. Those of another length are other skills."""
    if not setting.measured_k:
        return names_of(setting, setting.measured)
    return tuple(f"{setting.measured_k}/{skill_names(setting.measured_k)[number - 1]}" for number in setting.measured)


def probes(setting: Setting, num_skills: int) -> dict[str, int]:
    """When a method probes.

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
    """Optimizer steps between two decisions."""
    if method in PROBING:
        return PROBE_STEPS
    return setting.eval_every if method == "odm" else setting.round_steps


def begins_with_losses(method: str) -> bool:
    """Whether a method's first decision uses the losses before the first step, as Algorithm 1 does.

    The other methods were trained and published before a run could begin with these losses, and stay as they are.

    >>> begins_with_losses("chain"), begins_with_losses("chain with initial losses")
    (False, True)
    """
    return method.endswith(INITIAL)


def read_at(setting: Setting, method: str, num_skills: int) -> list[int]:
    """The steps at which a method that reads losses is told them, which are those that it pays for: of SKILL-IT the evaluations in
    its window when weights change, of one that probes also those before the first probe and after each, else all.

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
    """The graph of a method that is given one: rows the trained skills, columns the measured ones."""
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
    """The graph of learned ones, of one seed or several."""
    rule = EdgeRule("absolute", None, "curve", clamp=False, off_diagonal=None, drop_uncertain=False)
    found = [derive_again(read_graph(place), rule=rule, name=place.name) for place in places]
    return mean_graph([SkillGraph(one.train_skills, one.eval_skills, one.edges) for one in found])


def direct_graph(place: Path) -> SkillGraph:
    """The order that a learned graph tells."""
    rule = EdgeRule(
        "absolute", None, "curve", clamp=True, off_diagonal=STRONGEST, drop_uncertain=False, direct=DIRECT_SHARE
    )
    found = derive_again(read_graph(place), rule=rule, name=place.name)
    return SkillGraph(found.train_skills, found.eval_skills, found.edges)


def mean_graph(effects: list[SkillGraph]) -> SkillGraph:
    """The mean of effects, negative means 0, scaled."""
    rows, columns = effects[0].train_skills, effects[0].eval_skills
    mean = np.mean([one.edges for one in effects], axis=0)
    edges, _ = scaled_edges(np.maximum(mean, 0), is_same(rows, columns), STRONGEST)
    return SkillGraph(rows, columns, edges)
