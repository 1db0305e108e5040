"""Taggers: how a sample gets its skill."""

from skillshard.taggers.metadata import metadata
from skillshard.taggers.tag import tag_corpus
from skillshard.taggers.tagger import Tag, Tagger, Untagged

__all__ = ["Tag", "Tagger", "Untagged", "metadata", "tag_corpus"]
