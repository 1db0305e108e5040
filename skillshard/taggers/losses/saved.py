"""Open the saved clusters of the loss tagger, and tag samples with them.

    MODEL/model.json        written last; "encoder" holds reading, recipe, seeds, measure (skillshard.taggers.clusters.saved)
    MODEL/centroids.npy     centroids in standardised features; MODEL/mean.npy and MODEL/deviation.npy hold the scale
    MODEL/runs/00/          checkpoints of each trial (skillshard.proxy.trial)
    MODEL/probe.jsonl       id and skill of each fitting sample
    MODEL/losses.npy        losses of the fitting samples in nats, (trial, checkpoint, sample)

A sample costs a forward pass for each trial and checkpoint (`whole`), or for each trial and part (`parts`).
"""

from skillshard.extras import needed

needed("proxy", what="Training small models")  # before the imports that fail without the extra

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import nn

from skillshard import places, progress, storage
from skillshard.answers import AnswerRule
from skillshard.artefact import differences
from skillshard.corpus import Sample
from skillshard.corpus.chat import Chat, ChatTemplate
from skillshard.errors import TagsError
from skillshard.loss import LossKind
from skillshard.proxy.device import is_here, one_thread
from skillshard.proxy.identity import directory_identity
from skillshard.proxy.model import ProxyShape
from skillshard.proxy.pretrained import PretrainedTokens, check_place
from skillshard.proxy.reading import Bytes, Reading
from skillshard.proxy.samples import ReadableText, encode, readable
from skillshard.proxy.segments import Segments, without
from skillshard.proxy.train import TokenBatch, sample_scores
from skillshard.proxy.trial import Recipe, computing, load_checkpoint, new_model
from skillshard.taggers.clusters.kmeans import Clusters, assign
from skillshard.taggers.clusters.saved import SavedClusters
from skillshard.taggers.losses.scores import score_rows
from skillshard.taggers.losses.trajectories import Measure, Scale, parts_features, whole_features
from skillshard.taggers.rows import num_rows_of
from skillshard.taggers.tagger import RowTagger, Search, Tag, Untagged

KIND = "loss"
# The limit bounds the memory of a forward pass. A tagger gets 1,024 rows at once.
MAX_BATCH = 512
_READINGS = {"bytes": Bytes, "segments": Segments, "pretrained": PretrainedTokens}


@dataclass(frozen=True)
class TrainedProxies:
    """Saved trials without clusters, which are enough to measure losses.

    Attributes:
        reading: Reading of the texts.
        recipe: Recipe of the trials.
        trials: Directories of the trials.
        measure: "whole" or "parts" (`skillshard.taggers.losses.trajectories`).
    """

    reading: Reading
    recipe: Recipe
    trials: tuple[str, ...]
    measure: Measure

    def whole_losses(self, batch: TokenBatch) -> Float[np.ndarray, "trial checkpoint sample"]:
        """Measure the loss of each text at each checkpoint of each trial, in nats per token."""
        return np.stack(self._of_runs(slice(None), [batch]))[..., 0]

    def part_losses(self, batch: TokenBatch) -> Float[np.ndarray, "trial sample part"]:
        """Measure the loss of each text with one part left out, at the last checkpoint, in nats per token."""
        # The last part is the question. Without the question no text has an answer, so this part always stays.
        versions = [without(batch, position) for position in range(batch.tokens.shape[1] - 1)]
        return np.stack([losses[0] for losses in self._of_runs(slice(-1, None), versions)])

    def features(self, batch: TokenBatch, *, guess_loss: float) -> Float[np.ndarray, "sample feature"]:
        """Compute the features of texts, by the measure of the tagger."""
        if self.measure == "whole":
            return whole_features(self.whole_losses(batch))
        return parts_features(self.part_losses(batch), guess_loss=guess_loss)

    def _of_runs(
        self, counted: slice, versions: Sequence[TokenBatch]
    ) -> list[Float[np.ndarray, "checkpoint sample version"]]:
        steps = self.recipe.kept_steps[counted]
        losses = []
        for number, trial in enumerate(self.trials):
            with one_thread():
                # The seed does not matter, because a checkpoint replaces all parameters.
                model = new_model(self.recipe, seed=0)
                of_trial = []
                for position, step in enumerate(steps, start=1):
                    of_trial.append(self._losses(model, trial, step, versions))
                    progress.advance(number * len(steps) + position, len(self.trials) * len(steps))
                losses.append(np.stack(of_trial))
        return losses

    def _losses(
        self, model: nn.Module, trial: str, step: int, versions: Sequence[TokenBatch]
    ) -> Float[np.ndarray, "sample version"]:
        load_checkpoint(model, trial, step)
        ready = computing(model, self.recipe)
        return np.stack([sample_scores(ready, version, max_batch=MAX_BATCH).losses for version in versions], axis=1)


@dataclass(frozen=True)
class LossTagger:
    """A tagger by saved clusters of loss trajectories, opened by `open_loss_tagger`.

    The score is the squared distance to the centroid.

    Attributes:
        folder: Directory of the saved clusters.
        digest: Digest of model.json.
    """

    reads_texts: ClassVar[bool] = True

    folder: str
    digest: str

    @property
    def name(self) -> str:
        return "loss"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"model": self.digest}

    @property
    def stages(self) -> tuple[str, ...]:
        return ("count", "score")

    def find(self, search: Search) -> RowTagger:
        """Score all samples in small tasks (`skillshard.taggers.losses.scores`)."""
        return score_rows(self, search, num_rows_of(search))

    def tag(self, samples: Sequence[Sample]) -> list[Tag | Untagged]:
        opened = _opened(self.folder, self.digest)
        refusal = opened.model.reading.refusal
        # Only usable texts go through the model. The others keep their places among the outcomes.
        outcomes = [readable(sample, refusal, opened.rule) for sample in samples]
        texts = [outcome for outcome in outcomes if isinstance(outcome, ReadableText)]
        tags = iter(opened.tag(texts) if texts else ())
        return [
            next(tags)
            if isinstance(outcome, ReadableText)
            else Untagged("wrong-type", f"the text cannot be read: {outcome}")
            for outcome in outcomes
        ]


@dataclass(frozen=True)
class _Opened:
    model: TrainedProxies
    guess_loss: float
    scale: Scale
    clusters: Clusters
    names: tuple[str, ...]
    rule: AnswerRule

    def tag(self, texts: Sequence[ReadableText]) -> list[Tag]:
        features = self.model.features(encode(self.model.reading, texts), guess_loss=self.guess_loss)
        assigned = assign(self.scale.apply(features), self.clusters)
        pairs = zip(assigned.cluster.tolist(), assigned.distance.tolist(), strict=True)
        return [Tag(self.names[cluster], distance) for cluster, distance in pairs]


def open_loss_tagger(place: str | os.PathLike[str]) -> LossTagger:
    """Open a tagger by the directory of its saved clusters, or by the directory of the tags beside the clusters.

    Raises:
        TagsError: The place has no saved clusters, the clusters are damaged, or the clusters belong to another tagger.
    """
    model = SavedClusters.open(place)
    if model.manifest.encoder.kind != KIND:
        raise TagsError(
            f"the clusters in {places.public(model.folder)} are clusters of {model.manifest.encoder.name}, not of loss trajectories. Give the clusters of tags "
            "by loss, or make clusters with 'skillshard tag embedding'."
        )
    _refuse_changed_proxy(model)
    return LossTagger(model.folder, model.digest)


def _refuse_changed_proxy(model: SavedClusters) -> None:
    """Check that the pretrained proxy, with which the trials began, still has the same files.

    Raises:
        TagsError: A file changed.
    """
    proxy, before = model.manifest.encoder.name, model.manifest.encoder.arguments.get("proxy_files")
    if before is None:
        return
    check_place(proxy)
    if changed := differences(before, directory_identity(proxy)):
        raise TagsError(
            f"the losses in {model.folder} were measured with the model in {proxy}, and its files have changed since "
            f"({'; '.join(changed[:2])}). Restore the files, or tag anew by 'skillshard tag loss' in another directory."
        )


def reading_to_json(reading: Reading) -> dict[str, Any]:
    """Turn a reading into JSON.

    >>> reading_to_json(Bytes(window=8))
    {'kind': 'bytes', 'window': 8, 'answer_after': None}
    """
    kind = next(kind for kind, class_of_reading in _READINGS.items() if isinstance(reading, class_of_reading))
    fields: dict[str, Any] = asdict(reading)  # type: ignore[call-overload]  # all readings are dataclasses
    # A reading that adds special tokens keeps the bytes that it had before readings without them existed.
    return {
        "kind": kind,
        **{name: value for name, value in fields.items() if (name, value) != ("special_tokens", True)},
    }


def rule_to_json(rule: AnswerRule) -> dict[str, Any]:
    """Turn the rule of answers into JSON, for the record of clusters. A mark is part of the reading, so a rule of a mark gives no key.

    >>> rule_to_json(AnswerRule(LossKind())), rule_to_json(AnswerRule(LossKind(prompt_field="prompt_chars")))
    ({}, {'prompt_field': 'prompt_chars'})
    """
    if rule.chat is not None:
        template = rule.chat.template.model_dump(by_alias=True)
        return {"prompt_field": rule.kind.prompt_field, "chat": {"messages": rule.chat.messages, "template": template}}
    return {} if rule.kind.prompt_field is None else {"prompt_field": rule.kind.prompt_field}


def rule_from_json(value: Mapping[str, Any]) -> AnswerRule:
    """Turn JSON of `rule_to_json`, which may have other keys, into the rule. A mark is known to the reading, and not to the rule."""
    chat = value.get("chat")
    return AnswerRule(
        LossKind(prompt_field=value.get("prompt_field")),
        None if chat is None else Chat(ChatTemplate.model_validate(chat["template"]), chat["messages"]),
    )


def reading_from_json(value: dict[str, Any]) -> Reading:
    """Turn JSON of `reading_to_json` into the reading."""
    # JSON has no tuples, but a reading has tuples and no lists.
    arguments = {
        name: tuple(item) if isinstance(item, list) else item for name, item in value.items() if name != "kind"
    }
    reading: Reading = _READINGS[value["kind"]](**arguments)
    return reading


def recipe_from_json(value: dict[str, Any]) -> Recipe:
    """Turn JSON of a recipe, written by `asdict`, into the recipe."""
    model = value["model"]
    return Recipe(**{**value, "model": model if isinstance(model, str) else ProxyShape(**model)})


@lru_cache(maxsize=2)
def _opened(folder: str, digest: str) -> _Opened:
    # The digest is part of the key of the cache, so that changed clusters are opened again.
    saved = SavedClusters.open(folder)
    arguments = saved.manifest.encoder.arguments
    trials = tuple(trial_folder(folder, number) for number in range(len(arguments["seeds"])))
    recipe = recipe_from_json(arguments["recipe"])
    # Trials that were trained on a GPU can tag on a machine without a GPU.
    if not is_here(recipe.device):
        recipe = replace(recipe, device="cpu")
    model = TrainedProxies(reading_from_json(arguments["reading"]), recipe, trials, arguments["measure"])
    mean, deviation = (
        np.array(storage.load_array(places.join(folder, f"{name}.npy"))) for name in ("mean", "deviation")
    )
    scale, names = Scale(mean, deviation), tuple(saved.names)
    rule = rule_from_json(arguments)
    return _Opened(model, arguments["guess_loss"], scale, saved.clusters, names, rule)


def trial_folder(folder: str | os.PathLike[str], number: int) -> str:
    """Return the directory of the checkpoints of a trial."""
    return places.join(folder, "runs", f"{number:02d}")
