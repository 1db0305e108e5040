"""Loss trajectories: trials that continue after a kill, features, and skills found in a small corpus."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import skillshard.proxy.trial as proxy_run
from skillshard import taggers
from skillshard.corpus import Corpus, Sample
from skillshard.errors import CorpusError, ObservationError, ProxyError, TagsError
from skillshard.execution import Backend
from skillshard.loss import IGNORE
from skillshard.proxy.device import Compute, one_thread, resolve_device, resolve_precision
from skillshard.proxy.model import ProxyShape
from skillshard.proxy.pretrained import open_pretrained, pretrained_tokens
from skillshard.proxy.reading import Bytes
from skillshard.proxy.reading_choice import ReadingChoice
from skillshard.proxy.train import TokenBatch, sample_scores
from skillshard.proxy.trial import Recipe, estimate_s, load_checkpoint, new_model, train_trial
from skillshard.report.clusters import mean_trajectories
from skillshard.taggers.agreement import agreement
from skillshard.taggers.clusters.kmeans import Choice, best_of
from skillshard.taggers.losses.saved import (
    open_loss_tagger,
    reading_from_json,
    reading_to_json,
    recipe_from_json,
)
from skillshard.taggers.losses.tagger import LossFinder, loss_tagger
from skillshard.taggers.losses.trajectories import guess_loss, parts_features, scale_of, whole_features
from skillshard.tags import Tags
from tests.commands import skillshard, works
from tests.conftest import HERE, lines, tree

SHAPE = ProxyShape(vocab=257, positions=15, layers=1, dim=16, heads=2)
RECIPE = Recipe(model=SHAPE, steps=12, checkpoints=4, lr=1e-2)
TEXTS = [f"{left}+{right}={left + right}" for left in range(12) for right in range(12)]
ENCODED = Bytes(window=16).encode(TEXTS)


def small_corpus(folder: Path, *, num: int = 240) -> Path:
    """Write two skills that differ only in the word of the question: one with the same answer always, and one with a random answer."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(num):
        skill, word = (("greet", "hello"), ("toss", f"n{random.integers(8)}"))[number % 2]
        left, right = random.integers(0, 50, 2)
        rows.append(
            {"id": f"{number:04d}", "text": f"a is {left}, b is {right}. {skill} = {word}", "meta": {"skill": skill}}
        )
    folder.mkdir(parents=True)
    for part in range(2):
        (folder / f"{part}.jsonl").write_bytes(
            lines(rows[part::2] if num % 2 else rows[: num // 2] if part == 0 else rows[num // 2 :])
        )
    return folder


def small_finder(**changes: Any) -> LossFinder:
    arguments = {"skills": 2, "trials": 2, "checkpoints": 3, "steps": 45, "fitting_samples": 100, "lr": 3e-3, **changes}
    names = {field.name for field in fields(ReadingChoice)}
    read = {"segment_at": ",.", "answer_after": "= ", **changes}
    reading = ReadingChoice(**{name: value for name, value in read.items() if name in names})
    others = {name: value for name, value in arguments.items() if name not in {*names, "device"}}
    return loss_tagger(**others, reading=reading, compute=Compute(arguments.get("device", "cpu")))


def true_skills(corpus: Path) -> dict[str, str]:
    rows = (orjson.loads(line) for path in corpus.glob("*.jsonl") for line in path.read_bytes().splitlines())
    return {row["id"]: row["meta"]["skill"] for row in rows}


def accuracy_of(tags: Tags, corpus: Path) -> float:
    true = true_skills(corpus)
    rows = (row for part in range(len(tags.manifest.parts)) for row in tags.rows(part))
    return agreement((row.skill, true[row.id]) for row in rows if row.skill and row.id).accuracy


@pytest.fixture(scope="module", autouse=True)
def one_thread_each() -> Iterator[None]:
    """The bytes are promised for one thread, and tests run side by side."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("loss") / "corpus")


@pytest.fixture(scope="module")
def tagged(corpus: Path) -> Tags:
    return taggers.tag_corpus(Corpus.open(corpus), small_finder(), corpus.parent / "tags", backend=HERE)


# ------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("dies_after", [3, 6, 9])
def test_a_run_that_is_killed_after_any_checkpoint_ends_in_the_same_bytes(
    dies_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_trial(ENCODED, RECIPE, seed=3, folder=tmp_path / "whole")
    save = proxy_run._save

    def save_and_die(*arguments: Any, **more: Any) -> None:
        save(*arguments, **more)
        if arguments[3] == dies_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(proxy_run, "_save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train_trial(ENCODED, RECIPE, seed=3, folder=tmp_path / "killed")
    assert (tmp_path / "killed" / "unfinished").exists()
    train_trial(ENCODED, RECIPE, seed=3, folder=tmp_path / "killed")
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert sorted(tree(tmp_path / "whole")) == [f"checkpoint-{step:06d}.npy" for step in (3, 6, 9, 12)]


def test_a_checkpoint_without_its_optimizer_is_not_gone_on_from(tmp_path: Path) -> None:
    train_trial(ENCODED, RECIPE, seed=3, folder=tmp_path / "whole")
    half = tmp_path / "half"
    half.mkdir()
    (half / "checkpoint-000006.npy").write_bytes((tmp_path / "whole" / "checkpoint-000003.npy").read_bytes())
    train_trial(ENCODED, RECIPE, seed=3, folder=half)
    assert tree(half) == tree(tmp_path / "whole")


def test_seeds_give_other_weights_and_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        train_trial(ENCODED, RECIPE, seed=seed, folder=tmp_path / name)
    assert tree(tmp_path / "a") != tree(tmp_path / "b")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    train_trial(ENCODED, RECIPE, seed=1, folder=tmp_path / "a")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == before


def test_bfloat16_trains_and_keeps_float32_parameters(tmp_path: Path) -> None:
    recipe = Recipe(model=SHAPE, steps=12, checkpoints=2, lr=1e-2, precision="bfloat16")
    train_trial(ENCODED, recipe, seed=0, folder=tmp_path)
    model = new_model(recipe, seed=0)
    before = sample_scores(model, ENCODED).losses
    load_checkpoint(model, tmp_path, 12)
    after = sample_scores(model, ENCODED).losses
    assert np.load(tmp_path / "checkpoint-000012.npy").dtype == np.float32
    assert after.mean() < before.mean() - 0.5


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train_trial(ENCODED, RECIPE, seed=0, folder=tmp_path)
    other = new_model(
        Recipe(model=ProxyShape(vocab=257, positions=15, layers=2, dim=16, heads=2), steps=1, checkpoints=1, lr=1.0),
        seed=0,
    )
    with pytest.raises(
        ProxyError, match=r"holds [\d,]+ parameters, and the proxy has [\d,]+\. The file belongs to another model"
    ):
        load_checkpoint(other, tmp_path, 12)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"checkpoints": 13}, "12 steps with 13 checkpoints"),
        ({"checkpoints": 0}, "12 steps with 0 checkpoints"),
        ({"drop_share": 1.0}, "drop_share=1.0: expected a share from 0 to below 1"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ProxyError, match=re.escape(says)):
        Recipe(**{"model": SHAPE, "steps": 12, "checkpoints": 4, "lr": 1e-2, **changes})


def test_an_estimate_is_a_time_above_0_and_trains_nothing() -> None:
    torch.manual_seed(0)
    assert 0 < estimate_s(ENCODED, RECIPE) < 60


# --------------------------------------------------------------------------------------------------------- features


@given(arrays(np.float64, (2, 3, 5), elements=st.floats(0, 20)))
def test_whole_features_hold_every_loss_of_a_sample_and_of_no_other(losses: np.ndarray) -> None:
    features = whole_features(losses)
    assert features.shape == (5, 6)
    for sample in range(5):
        assert np.allclose(np.exp(features[sample]).reshape(2, 3), np.maximum(losses[:, :, sample], 1e-4))


@given(arrays(np.float64, (2, 4, 6), elements=st.floats(0, 9)), st.permutations(range(6)))
def test_parts_features_do_not_depend_on_the_order_of_the_parts_nor_on_how_wrong_a_model_is(
    losses: np.ndarray, order: list[int]
) -> None:
    features = parts_features(losses, guess_loss=0.7)
    assert np.allclose(features, parts_features(losses[:, :, order], guess_loss=0.7))
    assert np.allclose(features, parts_features(np.where(losses > 0.7, 99.0, losses), guess_loss=0.7))
    assert (np.diff(features, axis=1) >= 0).all()


@given(arrays(np.float64, (6, 3), elements=st.floats(-5, 5)))
def test_standardised_features_of_the_fitting_samples_have_mean_0_and_deviation_1(features: np.ndarray) -> None:
    scaled = scale_of(features, measure="whole").apply(features).astype(np.float64)
    assert np.allclose(scaled.mean(axis=0), 0, atol=1e-2)
    assert np.allclose(scaled.std(axis=0), 1, atol=1e-2)


def test_guessing_costs_the_entropy_of_the_answers() -> None:
    assert guess_loss(np.array([3])) == 0
    assert guess_loss(np.arange(10)) == pytest.approx(np.log(10))


# ------------------------------------------------------------------------------------------------------- the tagger


def test_what_is_learnt_and_what_cannot_be_learnt_become_two_skills(tagged: Tags, corpus: Path) -> None:
    assert accuracy_of(tagged, corpus) >= 0.95
    assert [skill.name for skill in tagged.manifest.skills] == ["greet-hello", "toss"]
    assert tagged.verify() == []


@pytest.mark.parametrize("workers", [2])
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    workers: int, tagged: Tags, corpus: Path, tmp_path: Path
) -> None:
    taggers.tag_corpus(Corpus.open(corpus), small_finder(), tmp_path / "tags", backend=Backend(workers=workers))
    assert tree(tmp_path / "tags") == tree(tagged.folder)


def test_a_kept_model_tags_new_samples_like_the_old_ones(tagged: Tags, corpus: Path, tmp_path: Path) -> None:
    again = taggers.tag_corpus(Corpus.open(corpus), open_loss_tagger(tagged.folder), tmp_path / "tags", backend=HERE)
    assert len(again.manifest.parts) == len(tagged.manifest.parts) >= 1
    for part in range(len(again.manifest.parts)):
        assert list(again.rows(part)) == list(tagged.rows(part))


def test_a_model_learnt_on_a_gpu_tags_where_there_is_none(
    tagged: Tags, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    shutil.copytree(Path(tagged.folder) / "model", tmp_path / "model")
    manifest = tmp_path / "model" / "model.json"
    record = orjson.loads(manifest.read_bytes())
    record["encoder"]["arguments"]["recipe"]["device"] = "cuda"
    manifest.write_bytes(orjson.dumps(record))
    again = taggers.tag_corpus(
        Corpus.open(corpus), open_loss_tagger(tmp_path / "model"), tmp_path / "tags", backend=HERE
    )
    parts = range(len(tagged.manifest.parts))
    assert [list(again.rows(part)) for part in parts] == [list(tagged.rows(part)) for part in parts]


def test_texts_without_an_answer_stop_the_tagger_or_are_set_aside(tagged: Tags, tmp_path: Path) -> None:
    folder = small_corpus(tmp_path / "corpus")
    (folder / "2.jsonl").write_bytes(lines([{"id": "bad", "text": "no answer"}]))
    with pytest.raises(
        CorpusError, match=r"2.jsonl line 1: the text cannot be read: no prompt, '= ' and a word behind it"
    ):
        taggers.tag_corpus(Corpus.open(folder), open_loss_tagger(tagged.folder), tmp_path / "stops", backend=HERE)
    with pytest.raises(
        CorpusError, match=r"2.jsonl: the text of sample 'bad' cannot be read: no prompt, '= ' and a word"
    ):
        taggers.tag_corpus(Corpus.open(folder), small_finder(), tmp_path / "stops too", backend=HERE)
    tags = taggers.tag_corpus(
        Corpus.open(folder),
        small_finder(steps=3),
        tmp_path / "tags",
        backend=HERE,
        on_bad_sample="set-aside",
        max_set_aside=1.0,
    )
    assert tags.manifest.set_aside == {"wrong-type": 1}


@pytest.mark.parametrize("measure", ["whole", "parts"])
def test_the_number_of_skills_can_be_chosen(measure: str, corpus: Path, tmp_path: Path) -> None:
    finder = small_finder(skills="auto", measure=measure, steps=20)
    tags = taggers.tag_corpus(Corpus.open(corpus), finder, tmp_path / "tags", backend=HERE)
    record = orjson.loads((tmp_path / "tags" / "model" / "model.json").read_bytes())
    best = best_of([Choice(tried["num_clusters"], tried["score"]) for tried in record["tried"]])
    assert len(record["clusters"]) == best.num_clusters >= len(tags.manifest.skills) >= 1


def test_readings_and_recipes_come_back_from_json() -> None:
    for reading in (Bytes(window=8, answer_after="="), small_reading()):
        assert reading_from_json(orjson.loads(orjson.dumps(reading_to_json(reading)))) == reading
    from dataclasses import asdict

    assert recipe_from_json(orjson.loads(orjson.dumps(asdict(RECIPE)))) == RECIPE


def small_reading() -> Any:
    from skillshard.proxy.segments import fit_segments

    return fit_segments(["a b, c = d"], separators=",", answer_after="= ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"skills": 1}, "`skills=1` leaves nothing to tell apart: give 2 or more, or 'auto'."),
        (
            {"skills": 101},
            "`skills=101` is more than the 100 samples whose trajectories are clustered. Raise `fitting_samples`.",
        ),
        ({"trials": 0}, "`trials=0`, `fitting_samples=100`, `seed=0`: expected 1 to 100 trials"),
        ({"measure": "half"}, "`measure='half'`: give 'whole' or 'parts'."),
        (
            {"measure": "parts", "segment_at": None},
            "`measure='parts'` leaves out one segment at a time. Give the characters",
        ),
        ({"answer_after": None}, "`segment_at` reads a text as segments and predicts a word of answer"),
        ({"proxy": "/"}, "`proxy='/'` reads texts with its own tokenizer. Leave `segment_at` out"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises((TagsError, ProxyError), match=re.escape(says)):
        small_finder(**changes)


def test_a_proxy_that_is_nowhere_is_refused_before_any_work() -> None:
    with pytest.raises(ProxyError, match="`proxy='some/model'`: neither 'tiny' nor 'small' nor a directory"):
        small_finder(proxy="some/model")


def test_a_gpu_where_there_is_none_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        ProxyError,
        match=r"`device='cuda'`: PyTorch \S+ sees 0 GPUs on this machine. Use a machine with the device, or give `device='cpu'`.",
    ):
        small_finder(device="cuda")
    # A node of a Ray cluster may have a GPU, and then a worker sees a single GPU.
    assert small_finder(device="cuda", on_this_machine=False).compute.device == "cuda"
    with pytest.raises(
        ProxyError, match=r"`device='cuda:1'`: a worker on Ray sees only the GPU .* Give `device='cuda'`"
    ):
        resolve_device("cuda:1", on_this_machine=False)
    with pytest.raises(ProxyError, match="`device='tpu'`: give 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        resolve_device("tpu")
    with pytest.raises(ProxyError, match="`precision='half'`: give 'auto', 'float32' or 'bfloat16'"):
        resolve_precision("half", "cpu")
    assert resolve_precision("auto", "cuda:1") == "bfloat16"


@pytest.mark.parametrize("texts", [["x = 1"] * 9, ["a = 1", "b = 1"] * 5])
def test_more_skills_than_different_texts_are_refused(texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    (tmp_path / "corpus" / "a.jsonl").write_bytes(lines(rows))
    with pytest.raises(
        TagsError, match=rf"`skills=3`: the corpus has {len(set(texts))} different texts that can be used"
    ):
        taggers.tag_corpus(Corpus.open(tmp_path / "corpus"), small_finder(skills=3), tmp_path / "tags", backend=HERE)


def test_a_model_of_another_tagger_or_a_damaged_one_is_refused(tagged: Tags, tmp_path: Path) -> None:
    with pytest.raises(TagsError, match="holds no saved clusters"):
        open_loss_tagger(tmp_path)
    shutil.copytree(Path(tagged.folder) / "model", tmp_path / "damaged")
    place = tmp_path / "damaged" / "runs" / "01" / "checkpoint-000045.npy"
    place.write_bytes(place.read_bytes()[:-1] + b"\x01")
    with pytest.raises(TagsError, match=r"checkpoint-000045\.npy has digest"):
        open_loss_tagger(tmp_path / "damaged")
    shutil.copytree(Path(tagged.folder) / "model", tmp_path / "other")
    manifest = tmp_path / "other" / "model.json"
    record = orjson.loads(manifest.read_bytes())
    record["encoder"] |= {"kind": "lexical", "name": "lexical"}
    manifest.write_bytes(orjson.dumps(record))
    with pytest.raises(TagsError, match="are clusters of lexical, not of loss trajectories"):
        open_loss_tagger(tmp_path / "other")


def test_inspect_shows_the_clusters_and_draws_their_trajectories(tagged: Tags, tmp_path: Path) -> None:
    shown = works("inspect", tagged.folder, "--against", "meta.skill", "--pictures", tmp_path / "P")
    assert "encoder tiny (6 dimensions), 2 centroids" in shown and "one-to-one accuracy" in shown
    assert (tmp_path / "P" / "trajectories.png").read_bytes().startswith(b"\x89PNG")
    steps, curves = mean_trajectories(tagged.place("model"))
    losses = np.load(Path(tagged.folder) / "model" / "losses.npy")
    assert steps == [15, 30, 45] and losses.shape == (2, 3, 100)
    assert curves["greet-hello"][-1] < 0.5 < 1.5 < curves["toss"][-1]
    assert "all as the manifest says" in works("verify", tagged.folder)


def test_the_command_refuses_options_of_other_taggers_and_asks_for_a_number_of_skills(
    corpus: Path, tmp_path: Path
) -> None:
    for options, says in (
        (("loss",), "Missing option '--skills'"),
        (("loss", "--skills", 2, "--encoder", "lexical"), "No such option: --encoder"),
        (("embedding", "--skills", 2, "--trials", 3), "No such option: --trials"),
        (("reuse", "--clusters", tmp_path, "--steps", 3), "No such option: --steps"),
    ):
        method, *others = options
        outcome = skillshard("tag", method, corpus, "--out", tmp_path / "out", *others)
        assert outcome.code == 2 and says in re.sub(r"[\s│]+", " ", outcome.err), outcome


# ------------------------------------------------------------------------------------------- a model of Hugging Face


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.adapters.hf_trainer import byte_tokenizer, tiny

    folder = tmp_path_factory.mktemp("pretrained")
    tiny().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_a_pretrained_model_and_its_tokenizer_take_the_proxys_place(
    pretrained: Path, corpus: Path, tmp_path: Path
) -> None:
    finder = small_finder(proxy=str(pretrained), segment_at=None, steps=60, lr=2e-2)
    tags = taggers.tag_corpus(Corpus.open(corpus), finder, tmp_path / "tags", backend=HERE)
    assert accuracy_of(tags, corpus) >= 0.9
    new = open_loss_tagger(tmp_path / "tags").tag([Sample("x", "a is 1, b is 2. greet = hello", {})])
    assert isinstance(new[0], taggers.Tag) and new[0].skill == "greet-hello"


def test_its_tokens_are_read_by_windows_and_answers_found_by_their_place(pretrained: Path) -> None:
    reading = pretrained_tokens(str(pretrained), window=8, answer_after="=")
    batch: TokenBatch = reading.encode(["1+1=2", "é" * 9 + "=77"])
    assert batch.tokens.shape == (2, 7, 1)
    assert [(row != IGNORE).sum() for row in batch.targets] == [1, 2]
    assert pretrained_tokens(str(pretrained), window=100, answer_after=None).window == 64
    assert reading.refusal("1+1") is not None and reading.refusal("1+1=2") is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "neither 'tiny' nor 'small' nor a directory"),
        (lambda folder: folder.mkdir(), "a causal language model could not be opened there"),
    ],
)
def test_a_place_without_a_model_is_refused(make: Any, says: str, tmp_path: Path) -> None:
    make(tmp_path / "nowhere")
    with pytest.raises(ProxyError, match=says):
        open_pretrained(str(tmp_path / "nowhere"))


def test_a_reason_over_several_lines_is_shown_with_all_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no tokenizer from one of:\n(1) a file\n(2) a class")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(
        ProxyError, match=r"could not be opened there: no tokenizer from one of: \(1\) a file \(2\) a class\. Save"
    ):
        pretrained_tokens(str(tmp_path), window=8, answer_after=None)


# -------------------------------------------------------------------------------------------- prompts by a metadata field


def with_prompts(corpus: Path, folder: Path) -> Path:
    """Write the corpus with the number of characters before the answer, and the span of the answer, in the metadata."""
    folder.mkdir()
    for path in corpus.glob("*.jsonl"):
        rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        for row in rows:
            row["meta"]["prompt_chars"] = row["text"].rindex("= ") + 2
            row["meta"]["spans"] = [[row["meta"]["prompt_chars"], len(row["text"])]]
        (folder / path.name).write_bytes(lines(rows))
    return folder


def test_a_prompt_by_a_metadata_field_gives_the_tags_that_the_same_prompt_by_a_mark_gives(
    corpus: Path, tmp_path: Path
) -> None:
    masked = with_prompts(corpus, tmp_path / "corpus")
    rows = {}
    for name, kind in {
        "mark": {"answer_after": "= "},
        "field": {"answer_after": None, "prompt_field": "meta.prompt_chars"},
        "spans": {"answer_after": None, "prompt_field": "spans"},
        "whole": {"answer_after": None},
    }.items():
        finder = small_finder(segment_at=None, window=32, steps=5, checkpoints=2, **kind)
        tags = taggers.tag_corpus(Corpus.open(masked), finder, tmp_path / name, backend=HERE)
        rows[name] = [row for part in range(len(tags.manifest.parts)) for row in tags.rows(part)]
    assert rows["field"] == rows["spans"] == rows["mark"] != rows["whole"]
    again = taggers.tag_corpus(
        Corpus.open(masked), open_loss_tagger(tmp_path / "field"), tmp_path / "again", backend=HERE
    )
    assert [row for part in range(len(again.manifest.parts)) for row in again.rows(part)] == rows["field"]


def test_a_sample_without_the_prompts_field_is_refused_or_set_aside(corpus: Path, tmp_path: Path) -> None:
    masked = with_prompts(corpus, tmp_path / "corpus")
    rows = [orjson.loads(line) for line in (masked / "0.jsonl").read_bytes().splitlines()]
    del rows[5]["meta"]["prompt_chars"]
    rows[7]["meta"]["prompt_chars"] = len(rows[7]["text"])
    (masked / "0.jsonl").write_bytes(lines(rows))
    finder = small_finder(
        segment_at=None, answer_after=None, prompt_field="meta.prompt_chars", window=32, steps=5, checkpoints=2
    )
    with pytest.raises(CorpusError, match=r"sample '0005' cannot be read: .*prompt_chars' is missing.*`prompt_field`"):
        taggers.tag_corpus(Corpus.open(masked), finder, tmp_path / "stop", backend=HERE)
    tags = taggers.tag_corpus(
        Corpus.open(masked), finder, tmp_path / "aside", backend=HERE, on_bad_sample="set-aside", max_set_aside=1.0
    )
    assert sum(row.skill is None for part in range(len(tags.manifest.parts)) for row in tags.rows(part)) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"segment_at": None, "prompt_field": "meta.n"}, ObservationError),
        ({"answer_after": None, "prompt_field": "meta.n"}, ProxyError),
    ],
)
def test_a_prompts_field_does_not_go_with_a_mark_or_with_segments(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        small_finder(**arguments)


def test_a_text_is_tokenized_once_however_often_it_is_read(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skillshard.proxy.pretrained._kept", {})
    tokenized: list[str] = []
    monkeypatch.setattr(
        "skillshard.proxy.pretrained._ids",
        lambda tokenizer, texts: tokenized.extend(texts) or tokenizer(list(texts))["input_ids"],
    )
    texts = ["ab", "c", "ab", "defg"]
    first = pretrained_tokens(str(pretrained), window=3, answer_after=None).encode(texts)
    reading = pretrained_tokens(str(pretrained), window=3, answer_after=None)
    again = reading.encode(texts[::-1])
    assert np.array_equal(first.tokens[::-1], again.tokens) and np.array_equal(first.targets[::-1], again.targets)
    assert reading.refusal("c") is not None and reading.refusal("defg") is None
    assert sorted(tokenized) == ["ab", "c", "defg"]
    # Another window, and other answers, are read anew.
    wider = pretrained_tokens(str(pretrained), window=5, answer_after=None)
    assert (wider.encode(["defg"]).targets != IGNORE).sum() == 3
    assert (wider.encode(["defg"], [[(3, 4)]]).targets != IGNORE).sum() == 1


def test_the_kept_texts_are_bounded_and_the_oldest_leave(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo: dict[object, object] = {}
    monkeypatch.setattr("skillshard.proxy.pretrained._kept", memo)
    monkeypatch.setattr("skillshard.proxy.pretrained.MOST_KEPT_TOKENS", 24)
    reading = pretrained_tokens(str(pretrained), window=8, answer_after=None)
    batch = reading.encode([f"text {number}" for number in range(5)])
    assert len(batch) == 5 and len(memo) == 3
    assert np.array_equal(reading.encode(["text 0"]).tokens[0], batch.tokens[0])
