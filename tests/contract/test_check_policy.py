"""`check_policy` finds every broken promise. Each policy here breaks a single promise on purpose."""

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from skillshard.errors import PolicyError
from skillshard.policies import NextRound, Observation
from skillshard.policies.policy import check_losses, softmax
from skillshard.testing import check_policy

calls = itertools.count()


@dataclass
class Sound:
    """A policy that keeps the contract. Each class below breaks one promise of the contract."""

    name: str = "mine"
    arguments: dict[str, Any] = field(default_factory=lambda: {"temperature": 2.0})
    eval_skills: tuple[str, ...] | None = None
    reads_losses: bool = True
    may_miss_losses: bool = False

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> Any:
        return {"skills": list(skills), "losses": [0.0] * len(skills)}

    def observe(self, state: Any, observation: Observation) -> Any:
        losses = check_losses(observation.losses, state["skills"], step=observation.step)
        return {**state, "losses": list(losses.values())}

    def weights(self, state: Any, upcoming: NextRound | None = None) -> Any:
        return softmax(np.array(state["losses"]) / 2)


class Overflows(Sound):
    def weights(self, state: Any, upcoming: NextRound | None = None) -> Any:
        with np.errstate(all="ignore"):
            powers = np.exp(np.array(state["losses"]))
            return powers / powers.sum()


class SumsToTwo(Sound):
    def weights(self, state: Any, upcoming: NextRound | None = None) -> Any:
        return 2 * super().weights(state)


class GoesBelowZero(Sound):
    def weights(self, state: Any, upcoming: NextRound | None = None) -> Any:
        losses = np.array(state["losses"])
        return 1 / len(losses) + (losses - losses.mean())


class GivesAList(Sound):
    def weights(self, state: Any, upcoming: NextRound | None = None) -> Any:
        return super().weights(state).tolist()


class LeavesTheRoundOut(Sound):
    def weights(self, state: Any) -> Any:  # type: ignore[override]  # the promise that is broken
        return softmax(np.array(state["losses"]) / 2)


class ForgetsASkill(Sound):
    def weights(self, state: Any, upcoming: NextRound | None = None) -> Any:
        return softmax(np.array(state["losses"][1:]))


class WritesToTheState(Sound):
    def observe(self, state: Any, observation: Observation) -> Any:
        state["losses"] = super().observe(state, observation)["losses"]
        return state


class WritesToTheStateInWeights(Sound):
    def weights(self, state: Any, upcoming: NextRound | None = None) -> Any:
        state["asked"] = True
        return super().weights(state)


class Random(Sound):
    def weights(self, state: Any, upcoming: NextRound | None = None) -> Any:
        return softmax(np.array(state["losses"]) + next(calls) % 7 * np.arange(len(state["losses"])))


class CountsInObserve(Sound):
    def observe(self, state: Any, observation: Observation) -> Any:
        return {**super().observe(state, observation), "calls": next(calls)}


class RemembersItself(Sound):
    seen = 0

    def observe(self, state: Any, observation: Observation) -> Any:
        self.seen += 1
        return super().observe(state, observation)

    def weights(self, state: Any, upcoming: NextRound | None = None) -> Any:
        return softmax(self.seen * np.array(state["losses"]))


class KeepsAnArray(Sound):
    def observe(self, state: Any, observation: Observation) -> Any:
        return {**state, "losses": np.array(super().observe(state, observation)["losses"])}


class KeepsNan(Sound):
    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> Any:
        return {**super().init(skills), "best": math.inf}


class KeepsTuples(Sound):
    def observe(self, state: Any, observation: Observation) -> Any:
        return {**state, "losses": tuple(super().observe(state, observation)["losses"])}


class HasUnwritableArguments(Sound):
    def __init__(self) -> None:
        super().__init__(arguments={"graph": np.eye(2).tolist, "eta": 1.0})


class CannotBePickled(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.function = lambda losses: losses


class PrefersTheFirst(Sound):
    def weights(self, state: Any, upcoming: NextRound | None = None) -> Any:
        return softmax(np.array(state["losses"]) - np.arange(len(state["losses"])))


class TakesNan(Sound):
    def observe(self, state: Any, observation: Observation) -> Any:
        losses = [observation.losses[skill] for skill in state["skills"]]
        return {**state, "losses": [0.0 if loss != loss else min(loss, 1e6) for loss in losses]}


class MaySkipSkills(Sound):
    """A sound policy that keeps the last loss of a missing skill."""

    def __init__(self) -> None:
        super().__init__(may_miss_losses=True)

    def observe(self, state: Any, observation: Observation) -> Any:
        losses = check_losses(observation.losses, state["skills"], step=observation.step, may_miss=True)
        return {
            **state,
            "losses": [losses.get(name, old) for name, old in zip(state["skills"], state["losses"], strict=True)],
        }


class MissesInSecret(MaySkipSkills):
    def __init__(self) -> None:
        Sound.__init__(self)


class SaysItMayMiss(Sound):
    def __init__(self) -> None:
        super().__init__(may_miss_losses=True)


class LosesWhatIsMissing(MaySkipSkills):
    def observe(self, state: Any, observation: Observation) -> Any:
        losses = check_losses(observation.losses, state["skills"], step=observation.step, may_miss=True)
        return {**state, "losses": list(losses.values())}


class TakesNothing(MaySkipSkills):
    def observe(self, state: Any, observation: Observation) -> Any:
        return super().observe(state, observation) if observation.losses else state


class StumblesOverNewSkills(Sound):
    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> Any:
        return {"skills": list(skills)[:4], "losses": [0.0] * len(skills[:4])}


class ReadsInSecret(Sound):
    def __init__(self) -> None:
        super().__init__(reads_losses=False)


class ProbesBadly(Sound):
    def probe(self, upcoming: NextRound, skills: Sequence[str]) -> Any:
        return np.ones(len(skills)) if upcoming.number == 3 else None


class ProbesOtherwise(Sound):
    def probe(self, upcoming: NextRound, skills: Sequence[str]) -> Any:
        return np.eye(len(skills))[0] if upcoming.number == 3 else None


class Crashes(Sound):
    def observe(self, state: Any, observation: Observation) -> Any:
        raise KeyError("carry")


class Divides(Sound):
    """A policy that divides by the sum of the losses, which may be zero."""

    def weights(self, state: Any, upcoming: NextRound | None = None) -> Any:
        with np.errstate(all="ignore"):
            losses = np.array(state["losses"])
            return losses / losses.sum()


@pytest.mark.parametrize("sound", [Sound, MaySkipSkills])
def test_a_policy_that_keeps_the_contract_passes(sound: type[Sound]) -> None:
    check_policy(sound)


def test_a_policy_in_place_of_what_makes_it_is_refused() -> None:
    # In a process of its own, because annotations are checked here, and not in a user's process.
    code = "from skillshard import policies, testing; testing.check_policy(policies.stratified())"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.returncode == 1
    assert (
        "PolicyError: check_policy builds the policy several times: give what makes it, such as lambda: "
        in outcome.stderr
    )


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (Overflows, "after losses of 1000: weights are not finite"),
        (Divides, "after no losses yet: weights are not finite"),
        (SumsToTwo, "weights sum to 2, not to 1"),
        (GoesBelowZero, "after falling losses: a weight is below 0"),
        (GivesAList, "weights are list, not an array of floats"),
        (
            LeavesTheRoundOut,
            "weights are a distribution: it raised TypeError: LeavesTheRoundOut.weights() takes 2 positional",
        ),
        (ForgetsASkill, "weights have shape (3,), and there are 4 skills"),
        (WritesToTheState, "observe changes the state that it is given"),
        (WritesToTheStateInWeights, "weights changes the state that it is given"),
        (Random, "weights gives others when it is called again with the same state"),
        (CountsInObserve, "observe gives another state when it is called again with the same"),
        (RemembersItself, "something is remembered outside the state"),
        (KeepsAnArray, "the state after falling losses is not JSON"),
        (KeepsNan, "the state after no losses yet is not JSON"),
        (KeepsTuples, "the state after falling losses does not come back from JSON as it was"),
        (HasUnwritableArguments, "its arguments are not JSON"),
        (CannotBePickled, "it cannot be pickled, which a loader with workers needs"),
        (PrefersTheFirst, "they depend on places, not on names"),
        (TakesNan, "a loss that is NaN is taken"),
        (TakesNan, "a loss that is of an unknown skill is taken"),
        (TakesNan, "missing losses are refused unless it may miss them: it raised KeyError"),
        (MissesInSecret, "may_miss_losses is False, and yet it takes an observation in which a skill is missing"),
        (
            SaysItMayMiss,
            "may_miss_losses is True, and yet it refuses an observation of 1 of 4 skills: losses at step 10",
        ),
        (LosesWhatIsMissing, "after an observation in which a skill is missing: weights have shape (1,)"),
        (TakesNothing, "an observation without any loss is taken"),
        (StumblesOverNewSkills, "with a new skill: weights have shape (4,), and there are 5 skills"),
        (ReadsInSecret, "reads_losses is False, and yet its weights change with the losses"),
        (ProbesBadly, "the probe of round 3: weights sum to 4"),
        (ProbesOtherwise, "round 3 is a probe, and weights gives other weights than probe"),
        (Crashes, "weights are a distribution: it raised KeyError: 'carry'"),
    ],
)
def test_each_broken_promise_is_found(broken: type[Sound], sentence: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(sentence)):
        check_policy(broken)
