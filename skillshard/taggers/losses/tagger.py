"""Find skills by loss trajectories: samples of a skill are learnt together.

1. The corpus is sampled by hash. The trials draw their batches from the sample, and the first texts are the fitting samples.
2. R trials train the proxy from different seeds. A trial is a task, and a killed trial continues from its last checkpoint.
3. For each trial, the losses of the fitting samples are measured at every kept checkpoint.
4. The losses become features (`skillshard.taggers.losses.trajectories`), k-means finds clusters, and the clusters get names. All
   results are saved (`skillshard.taggers.losses.saved`).
5. Forward passes tag every sample of the corpus with the saved clusters.

Reference: Chen et al., "Skill-it!", NeurIPS 2023, arXiv:2307.14430, appendix D.2. Differs: log losses, standardised; clusters are
fitted on a sample; a second measure, `parts`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import orjson
from jaxtyping import Float

from skillshard import places, storage
from skillshard.answers import AnswerRule
from skillshard.corpus.template import pairs_of
from skillshard.errors import TagsError, name_some
from skillshard.execution import Record, Task, keyed
from skillshard.keyed_random import keyed_seed
from skillshard.loss import IGNORE
from skillshard.printable import counted
from skillshard.proxy.device import Compute, device_kind, is_here, one_thread, resolve_precision
from skillshard.proxy.identity import model_identity, training_identity
from skillshard.proxy.reading import Reading
from skillshard.proxy.reading_choice import ReadingChoice
from skillshard.proxy.samples import ReadableText, encode
from skillshard.proxy.train import TokenBatch
from skillshard.proxy.trial import BATCH_SIZE, Recipe, check_schedule, estimate_s, train_trial
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.fit import CRITERION, choose_clusters
from skillshard.taggers.clusters.kmeans import assign
from skillshard.taggers.clusters.saved import CENTROIDS, FOLDER, MANIFEST, EncoderRecord, TriedNumber, save_clusters
from skillshard.taggers.losses.description import by_time_learnt, describe_learnt
from skillshard.taggers.losses.sampled_texts import SampledText, sample_texts
from skillshard.taggers.losses.saved import (
    KIND,
    TrainedProxies,
    open_loss_tagger,
    reading_to_json,
    rule_to_json,
    trial_folder,
)
from skillshard.taggers.losses.scores import score_rows
from skillshard.taggers.losses.trajectories import Measure, guess_loss, parts_features, scale_of, whole_features
from skillshard.taggers.rows import count_rows
from skillshard.taggers.tagger import RowTagger, Search

MAX_TEXTS = 100_000
"""Largest number of texts that trials draw from. A trial keeps the texts encoded, with 1 kB each for a window of 128."""
# A model that never saw a missing part is confidently wrong without a part, and its losses tell less about the skill (docs/LOG.md).
DROP_SHARE = 0.1


@dataclass(frozen=True)
class LossFinder:
    """The finder of `loss_tagger`."""

    reads_texts: ClassVar[bool] = True

    skills: int | Literal["auto"]
    skills_range: tuple[int, int] | None
    trials: int
    checkpoints: int
    steps: int
    measure: Measure
    reading: ReadingChoice
    proxy_identity: str | dict[str, str]
    fitting_samples: int
    lr: float
    seed: int
    compute: Compute
    on_estimate: Callable[[str], None] = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        return "loss"

    @property
    def stages(self) -> tuple[str, ...]:
        return ()  # all processes need all trials, and the trials need the sampled texts

    @property
    def arguments(self) -> dict[str, Any]:
        """All values that determine the clusters. A pretrained proxy is identified by the content of its files, not by the directory."""
        # Keys on disk keep their old words "runs" and "probe": another key would make finished tags the tags of other arguments.
        arguments = {
            "skills": self.skills,
            "runs": self.trials,
            "checkpoints": self.checkpoints,
            "steps": self.steps,
            "measure": self.measure,
            "probe": self.fitting_samples,
            "lr": self.lr,
            "seed": self.seed,
        }
        reading = {**self.reading.record(), "proxy": self.proxy_identity}
        if reading["prompt_field"] is None:
            del reading["prompt_field"]
        return {
            **arguments,
            **reading,
            "device": device_kind(self.compute.device),
            "precision": self.compute.precision,
            "skills_range": None if self.skills_range is None else list(self.skills_range),
            "training": training_identity(),
        }

    def find(self, search: Search) -> RowTagger:
        """Train the trials, measure the losses, find the clusters, save the clusters, and score all samples.

        A call after a kill repeats no finished task.
        """
        folder = search.work.scratch("kept", FOLDER)
        num_rows, _ = count_rows(search)
        if not storage.exists(places.join(folder, MANIFEST)):
            texts = self._sample(search)
            reading = self.reading.reading([sample.text for sample in texts])
            recipe = self._recipe(reading)
            self._train(search, folder, texts, reading, recipe, sum(num_rows))
            self._keep(search, folder, texts[: self.fitting_samples], reading, recipe)
        on_gpu = self.compute.is_on_gpu
        return score_rows(open_loss_tagger(folder), search, num_rows, num_gpus=float(on_gpu))

    def _sample(self, search: Search) -> list[SampledText]:
        texts = sample_texts(
            search.partitions,
            limit=max(min(MAX_TEXTS, self.steps * BATCH_SIZE), self.fitting_samples),
            reading=search.reading,
            refusal=self.reading.blank_reading().refusal,
            stop_at_refused=search.on_bad_sample == "stop",
            scratch=search.work.scratch("texts"),
            records=search.work.records("texts"),
            backend=search.backend,
            on_done=search.on_stage("sampling", len(search.partitions)),
            rule=self._rule(search),
        )
        # The trials take long, so texts that can never form enough clusters are refused before.
        num_distinct = len({sample.text for sample in texts})
        least = 2 if self.skills == "auto" else self.skills
        if num_distinct < least:
            raise TagsError(
                f"`skills={self.skills}`: the corpus has {num_distinct:,} different texts that can be used, and at least {least:,} are "
                "needed. Lower `skills`, or check the corpus."
            )
        return texts

    def _rule(self, search: Search) -> AnswerRule:
        """Return the rule for the texts and the answers of the corpus."""
        fields = {mapping.messages for mapping in search.reading.mappings.values()}
        if self.reading.chat_template is not None and len(fields) > 1:
            raise TagsError(
                f"the corpora have conversations in different fields, {name_some(sorted(map(str, fields)))}, and `chat_template` renders one field: give "
                "each corpus the same `messages`."
            )
        return self.reading.rule(next(iter(fields)), "the corpus")

    def _recipe(self, reading: Reading) -> Recipe:
        return Recipe(
            model=self.reading.model(reading),
            steps=self.steps,
            checkpoints=self.checkpoints,
            lr=self.lr,
            drop_share=DROP_SHARE if self.measure == "parts" else 0.0,
            device=self.compute.device,
            precision=resolve_precision(self.compute.precision, self.compute.device),
        )

    def _train(
        self,
        search: Search,
        folder: str,
        texts: Sequence[SampledText],
        reading: Reading,
        recipe: Recipe,
        num_rows: int,
    ) -> None:
        place = search.work.scratch("texts.json")
        if not storage.exists(place):
            storage.write_bytes(place, orjson.dumps([[text.text, text.answers] for text in texts]))
        tasks = keyed(
            {
                "texts": place,
                "reading": reading,
                "recipe": recipe,
                "seed": seed,
                "folder": trial_folder(folder, number),
            }
            for number, seed in enumerate(self._seeds())
        )
        timing = keyed([{"texts": place, "reading": reading, "recipe": recipe}])
        num_positions = _encode(reading, [(texts[0].text, texts[0].answers)]).tokens.shape[1]
        # As in `TrainedProxies`: the losses at all checkpoints, or the losses without each part but the last.
        each = len(recipe.kept_steps) if self.measure == "whole" else num_positions - 1
        self.on_estimate(self._estimate(search, timing, num_texts=num_rows, times=self.trials * each))
        self._run(search, train_task, tasks, "train", "training")

    def _run(
        self, search: Search, function: Callable[..., Record], tasks: Sequence[Task], stage: str, title: str
    ) -> list[Record]:
        """Run a stage. If the proxy computes on a GPU, each task takes a GPU."""
        on_gpu = self.compute.is_on_gpu
        return search.run(function, tasks, stage=stage, title=title, keeps_model=on_gpu, num_gpus=float(on_gpu))

    def _seeds(self) -> list[int]:
        """Derive a seed for each trial."""
        # With seed + number, the taggers of the seeds 0 and 1 would share nearly all trials. Another label would change all trials.
        return [keyed_seed("loss run", self.seed, number) for number in range(self.trials)]

    def _estimate(self, search: Search, timing: Sequence[Task], *, num_texts: int, times: int) -> str:
        """Estimate the time of the trials and the measurements from a few steps, in this process if the device is on this machine, else in a task."""
        if is_here(self.compute.device):
            timed = time_task(**timing[0].arguments)
        else:
            timed = self._run(search, time_task, timing, "timing", "timing")[0]
        workers = search.backend.processes(self.trials, num_gpus=float(self.compute.is_on_gpu))
        return _estimate_sentence(
            self.trials,
            self.steps,
            timed["seconds"],
            workers,
            search.backend.ray_address,
            num_texts=num_texts,
            times=times,
        )

    def _keep(
        self, search: Search, folder: str, samples: Sequence[SampledText], reading: Reading, recipe: Recipe
    ) -> None:
        batch = _encode(reading, [(text.text, text.answers) for text in samples])
        losses, features = self._measure(search, folder, batch, reading, recipe)
        guess = guess_loss(batch.targets[batch.targets != IGNORE])
        scale = scale_of(features(guess), measure=self.measure)
        points = scale.apply(features(guess))
        skills_range = self.skills_range or kmeans.default_range(len(points))
        fitted = choose_clusters(
            points, self.skills, skills_range, seed=self.seed, spherical=False, on_stage=search.on_stage
        )
        clusters = by_time_learnt(fitted.clusters, points, losses)
        assigned = assign(points, clusters)
        described = describe_learnt(assigned, samples)
        for name, array in (("mean", scale.mean), ("deviation", scale.deviation), ("losses", losses)):
            storage.write_array(places.join(folder, f"{name}.npy"), array)
        rows = (
            {"id": sample.id, "skill": described[cluster].name}
            for sample, cluster in zip(samples, assigned.cluster, strict=True)
        )
        storage.write_bytes(places.join(folder, "probe.jsonl"), b"".join(orjson.dumps(row) + b"\n" for row in rows))
        arguments = {
            "reading": reading_to_json(reading),
            "recipe": asdict(recipe),
            "proxy_files": self.proxy_identity if isinstance(self.proxy_identity, dict) else None,
            "kept_steps": recipe.kept_steps,
            "seeds": self._seeds(),
            "measure": self.measure,
            "guess_loss": guess,
            # Clusters without a field for the prompt keep the bytes that they had before the field existed.
            **rule_to_json(self._rule(search)),
        }
        save_clusters(
            folder,
            clusters,
            encoder=EncoderRecord(kind=KIND, name=self.reading.proxy, arguments=arguments, dim=points.shape[1]),
            described=described,
            tried=[TriedNumber(num_clusters=choice.num_clusters, score=choice.score) for choice in fitted.tried],
            criterion=CRITERION if fitted.tried else None,
            encoder_files=_files(folder),
        )

    def _measure(
        self, search: Search, folder: str, batch: TokenBatch, reading: Reading, recipe: Recipe
    ) -> tuple[Float[np.ndarray, "trial checkpoint sample"], Callable[[float], Float[np.ndarray, "sample feature"]]]:
        """Measure the losses of the fitting samples.

        Returns:
            The losses of the whole texts, and a function that computes the features of the samples for a guess loss.
        """
        tasks = keyed(
            {
                "model": TrainedProxies(reading, recipe, (trial_folder(folder, number),), self.measure),
                "batch": batch,
                "out": search.work.scratch(f"losses-{number:02d}.npz"),
            }
            for number in range(self.trials)
        )
        self._run(search, measure_task, tasks, "measure", "measuring")
        trials = [storage.load_arrays(task.arguments["out"]) for task in tasks]
        whole = np.concatenate([arrays["whole"] for arrays in trials])
        if self.measure == "whole":
            return whole, lambda guess: whole_features(whole)
        parts = np.concatenate([arrays["parts"] for arrays in trials])
        return whole, lambda guess: parts_features(parts, guess_loss=guess)


def loss_tagger(
    *,
    skills: int | Literal["auto"],
    skills_range: tuple[int, int] | None = None,
    trials: int = 10,
    checkpoints: int = 10,
    steps: int = 1000,
    measure: str = "whole",
    reading: ReadingChoice = ReadingChoice(),
    fitting_samples: int = 2000,
    lr: float = 1e-3,
    seed: int = 0,
    compute: Compute = Compute(),
    on_this_machine: bool = True,
    on_estimate: Callable[[str], None] = lambda sentence: None,
) -> LossFinder:
    """Find skills by loss trajectories.

    Args:
        skills: Number of clusters, at least 2. "auto" takes a peak or the knee of the simplified silhouette over numbers in `skills_range`.
        skills_range: Smallest and largest number of clusters that "auto" tries. None: from 2 to the square root of the number of fitting
            samples, at most 256.
        trials: Number of trainings of the proxy, each from a different seed. The default is 10, as in the paper.
        checkpoints: Number of checkpoints of each trial.
        steps: Number of optimizer steps of each trial, with 64 texts each.
        measure: "whole" or "parts" (`skillshard.taggers.losses.trajectories`). The value "parts" requires `reading.segment_at`.
        reading: Proxy, and the way the proxy reads texts. A sample without the field `reading.prompt_field` cannot be tagged.
        fitting_samples: Number of samples whose trajectories are clustered.
        lr: Highest learning rate.
        seed: Seed for the trials and for k-means.
        compute: Device and precision of the trials.
        on_this_machine: Whether the device is on this machine. With False, the device is on other nodes and is not checked.
        on_estimate: Function that is called before the training with a sentence about the expected time.

    Raises:
        TagsError: A number is out of range, or arguments do not fit together.
        ProxyError: This machine does not have the device or the precision.
    """
    compute = compute.resolved(on_this_machine=on_this_machine)
    _check_numbers(skills, trials, fitting_samples, seed)
    kmeans.refuse_range(skills_range)
    if measure not in ("whole", "parts"):
        raise TagsError(f"`{measure=}`: give 'whole' or 'parts'.")
    if measure == "parts" and reading.segment_at is None:
        raise TagsError(
            "`measure='parts'` leaves out one segment at a time. Give the characters that end a segment, such as `segment_at=',.'`."
        )
    check_schedule(steps=steps, checkpoints=checkpoints, lr=lr)
    return LossFinder(
        skills=skills,
        skills_range=skills_range,
        trials=trials,
        checkpoints=checkpoints,
        steps=steps,
        measure=measure,  # type: ignore[arg-type]  # checked above
        reading=reading,
        proxy_identity=model_identity(reading.proxy),
        fitting_samples=fitting_samples,
        lr=lr,
        seed=seed,
        compute=compute,
        on_estimate=on_estimate,
    )


def _estimate_sentence(
    trials: int, steps: int, seconds: float, workers: int, ray_address: str | None, *, num_texts: int, times: int
) -> str:
    """Write the expected time of the trials, which run on `workers` processes at a time, and of the measurements after the trials.

    Args:
        trials: Number of trials.
        steps: Number of steps of a trial.
        seconds: Time of a trial.
        workers: Number of processes.
        ray_address: Ray cluster of the processes. None: this machine.
        num_texts: Number of texts of the corpus.
        times: Number of measurements of each text.

    >>> _estimate_sentence(1, 3, 4.2, 1, None, num_texts=20, times=1)
    '1 trial of 3 steps, 4 s each on 1 process: about 1 min. Then each of the 20 texts is measured once: about 1 min.'
    >>> _estimate_sentence(10, 1000, 61.0, 2, "auto", num_texts=80_000, times=100)
    '10 trials of 1,000 steps, 61 s each on auto: about 5 min. Then each of the 80,000 texts is measured 100 times: about 21 min.'
    """
    total = seconds * -(-trials // workers)
    # A step also computes gradients, which takes twice the time of the losses alone.
    loss_s = seconds / steps / BATCH_SIZE / 3
    measuring = num_texts * times * loss_s / workers
    place = ray_address or counted(workers, "process", "processes")
    return (
        f"{counted(trials, 'trial')} of {counted(steps, 'step')}, {seconds:,.0f} s each on {place}: about {_minutes(total)}. Then each of "
        f"the {num_texts:,} texts is measured {'once' if times == 1 else f'{times:,} times'}: about {_minutes(measuring)}."
    )


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60)):,} min"


def time_task(texts: str, reading: Reading, recipe: Recipe) -> Record:
    """Estimate the seconds of a trial in the process in which the trial runs."""
    with one_thread():
        return {"seconds": estimate_s(_encode(reading, orjson.loads(storage.read_bytes(texts))[:512]), recipe)}


def train_task(texts: str, reading: Reading, recipe: Recipe, seed: int, folder: str) -> Record:
    """Train a trial in a single thread."""
    # Two trials side by side use two cores better than one trial on both, and one thread gives the same bytes after a kill.
    with one_thread():
        train_trial(_encode(reading, orjson.loads(storage.read_bytes(texts))), recipe, seed=seed, folder=folder)
    return {"seed": seed}


def _encode(reading: Reading, texts: Sequence[Sequence[Any]]) -> TokenBatch:
    """Encode pairs of a text and its answers. Without answers, the reading finds the prompts."""
    return encode(reading, [ReadableText(text, None if spans is None else pairs_of(spans)) for text, spans in texts])


def measure_task(model: TrainedProxies, batch: TokenBatch, out: str) -> Record:
    """Measure the losses of the fitting samples in one trial."""
    arrays = {"whole": model.whole_losses(batch)}
    if model.measure == "parts":
        arrays["parts"] = model.part_losses(batch)
    storage.write_arrays(out, arrays)
    return {"num_samples": len(batch)}


def _files(folder: str) -> list[str]:
    """List the files beside the centroids and model.json."""
    names = (places.relative(file.place, folder) for file in storage.list_files(folder))
    return sorted(name for name in names if name not in (CENTROIDS, MANIFEST))


def _check_numbers(skills: int | Literal["auto"], trials: int, fitting_samples: int, seed: int) -> None:
    if skills != "auto" and skills < 2:
        raise TagsError(f"`{skills=}` leaves nothing to tell apart: give 2 or more, or 'auto'.")
    if skills != "auto" and skills > fitting_samples:
        raise TagsError(
            f"`{skills=}` is more than the {fitting_samples:,} samples whose trajectories are clustered. Raise `fitting_samples`."
        )
    if not 1 <= trials <= 100 or fitting_samples < 2 or seed < 0:
        raise TagsError(
            f"`{trials=}`, `{fitting_samples=}`, `{seed=}`: expected 1 to 100 trials, 2 or more samples, a seed from 0."
        )
