"""Give each sample of a corpus a skill."""

from skillshard.taggers.classifier import classifier
from skillshard.taggers.clusters.lexical import lexical
from skillshard.taggers.clusters.saved import SavedClusters
from skillshard.taggers.clusters.sentence_encoder import sentence_encoder
from skillshard.taggers.clusters.tagger import embedding, kept_clusters, kept_embeddings, kept_lexical
from skillshard.taggers.function import function
from skillshard.taggers.groups import read_map
from skillshard.taggers.labels import labels
from skillshard.taggers.metadata import metadata
from skillshard.taggers.regroup import regroup_tags
from skillshard.taggers.tag import tag_corpus
from skillshard.taggers.tagger import Tag, Tagger, Untagged

__all__ = [
    "SavedClusters",
    "Tag",
    "Tagger",
    "Untagged",
    "classifier",
    "embedding",
    "function",
    "kept_clusters",
    "kept_embeddings",
    "kept_lexical",
    "labels",
    "lexical",
    "metadata",
    "read_map",
    "regroup_tags",
    "sentence_encoder",
    "tag_corpus",
]
