"""Policies: pure functions from observed losses to weights, a file for each method. `chain` applies transforms to a policy."""

from skillshard.policies.ado import ado
from skillshard.policies.aioli import aioli
from skillshard.policies.by_group import by_group
from skillshard.policies.curriculum import anti_curriculum, curriculum, skill_curriculum
from skillshard.policies.doremi import doremi
from skillshard.policies.exp3 import exp3
from skillshard.policies.graph_refresh import graph_refresh
from skillshard.policies.loss_order import loss_order
from skillshard.policies.odm import odm
from skillshard.policies.policy import NextRound, Observation, Policy, Probing, Transform
from skillshard.policies.skill_it import skill_it
from skillshard.policies.skill_stratified import skill_stratified
from skillshard.policies.softmax_loss import softmax_loss
from skillshard.policies.stages import stages
from skillshard.policies.static import fixed, proportional, stratified
from skillshard.policies.temperature import temperature
from skillshard.policies.transforms import cap, chain, floor, max_change, repetition_limit, smoothing
from skillshard.policies.unimax import unimax

__all__ = [
    "NextRound",
    "Observation",
    "Policy",
    "Probing",
    "Transform",
    "ado",
    "aioli",
    "anti_curriculum",
    "by_group",
    "cap",
    "chain",
    "curriculum",
    "doremi",
    "exp3",
    "fixed",
    "floor",
    "graph_refresh",
    "loss_order",
    "max_change",
    "odm",
    "proportional",
    "repetition_limit",
    "skill_curriculum",
    "skill_it",
    "skill_stratified",
    "smoothing",
    "softmax_loss",
    "stages",
    "stratified",
    "temperature",
    "unimax",
]
