"""Policies: pure functions from observed losses to weights. One method, one file; transforms are chained after them."""

from skillshard.policies.policy import Observation, Policy, Transform
from skillshard.policies.skill_it import skill_it
from skillshard.policies.static import proportional, stratified
from skillshard.policies.transforms import chain, floor

__all__ = ["Observation", "Policy", "Transform", "chain", "floor", "proportional", "skill_it", "stratified"]
