"""TRL's SFTTrainer on chats, on prompts with completions, and on blocks: no sample lost or repeated, killed, resumed, on other ranks."""

import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from accelerate.data_loader import prepare_data_loader
from datasets import IterableDataset
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, random_split
from transformers import TrainingArguments
from transformers.trainer_utils import has_length

from skillshard.corpus import Corpus, FieldMapping
from skillshard.errors import FieldError, LengthError, PolicyError
from skillshard.hf import MixerCallback, WholeStream, sft_dataset
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.write import write_shards
from skillshard.stream_rows import StreamRows
from skillshard.taggers import metadata, tag_corpus
from tests.adapters.hf_trainer import ACCUMULATED, BATCH, STEP_ITEMS, Logging
from tests.adapters.packed_trainer import Source
from tests.adapters.processes import finish, records, start_ranks
from tests.adapters.test_hf import Stop, trained
from tests.adapters.trainers import SKILLS, expected_items, live_mixer, losses_at, measured, reported
from tests.conftest import HERE, write_corpus

pytest.importorskip("trl", reason="TRL needs newer releases of its requirements than the lowest ones of skillshard")
from tests.adapters.trl_trainer import MARKED, chat_tokenizer, stream_of, trainer

STEPS = 12
STEP_DRAWS = BATCH * ACCUMULATED
pytestmark = [
    pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning"),
    pytest.mark.filterwarnings("ignore:resumed at draw:UserWarning"),
]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Write conversations of three skills. Every third sample keeps its messages as JSON text. A pair stands beside the messages."""
    folder = tmp_path_factory.mktemp("chats")
    rows = []
    for number in range(240):
        question, answer = f"{SKILLS[number % 3]} {number}?", f"né {number}"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        pair = {"prompt": question, "completion": answer}
        rows.append({"skill": SKILLS[number % 3], "messages": messages, **pair, "kept": json.dumps(messages)})
    corpus = Corpus.open(write_corpus(folder / "corpus", rows), fields=FieldMapping(id_field=None, messages="messages"))
    tags = tag_corpus(corpus, metadata("skill"), folder / "tags", backend=HERE)
    return Source(str(write_shards(corpus, tags, folder / "shards", holdout=0.1, backend=HERE).root))


def spoken(source: Source, folder: Path, kind: str, *, step_draws: int = STEP_DRAWS) -> list[list[list[str]]]:
    """Return the text and the learned part of every sample, step by step, of a run without a trainer."""
    mixer = live_mixer(source.shards, folder, step_draws=step_draws, fields=("meta.prompt", "meta.completion"))
    measured(mixer)
    steps = []
    for step in range(1, STEPS + 1):
        fields = mixer.batch((step - 1) * step_draws, step_draws).fields
        pairs = zip(fields["meta.prompt"], fields["meta.completion"], strict=True)
        if kind == "chat":
            texts = [f"<user>{prompt}!<assistant>{completion}!" for prompt, completion in pairs]
            steps.append([[text, text] for text in texts])
        else:
            steps.append([[f"{prompt}{completion}!", f"{completion}!"] for prompt, completion in pairs])
        if step % 5 == 0:
            mixer.report(step, losses_at(step))
    return steps


@pytest.mark.parametrize("after", [2, 1])
@pytest.mark.parametrize("kind", ["chat", "pairs"])
def test_two_processes_killed_and_resumed_lose_and_repeat_nothing(
    chats: Source, tmp_path: Path, kind: str, after: int
) -> None:
    arguments = [*chats, str(tmp_path), str(STEPS), kind]
    codes = finish(start_ranks("trl_trainer", 2, [*arguments, "7"], tmp_path))
    assert set(codes) == {-signal.SIGKILL}
    assert finish(start_ranks("trl_trainer", after, [*arguments, "0"], tmp_path)) == [0] * after
    expected = spoken(chats, tmp_path / "reference", kind, step_draws=STEP_ITEMS)
    if after == 1:
        assert trained(tmp_path, world_size=2, accumulated=ACCUMULATED) == expected[:7]
        assert (
            trained(tmp_path, world_size=1, accumulated=2 * ACCUMULATED) == expected[4:]
        )  # from the checkpoint of step 4
    else:
        assert trained(tmp_path, world_size=2, accumulated=ACCUMULATED) == expected
    assert [draw for draw, _ in reported(tmp_path / "run")] == [step * STEP_ITEMS for step in (0, 5, 10)]


def resumed(source: Source, folder: Path, kind: str) -> list[list[Any]]:
    """Train up to step 7, resume from the checkpoint of step 4, and return the items of every step."""
    Logging.log = folder / "rank-0-of-1.jsonl"
    for stop_at in (7, STEPS):
        first_trainer = trainer(stream_of(source, folder / "run", kind), folder, kind, steps=STEPS)
        first_trainer.add_callback(Stop(stop_at))
        first_trainer.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-4") if stop_at == STEPS else None)
    return trained(folder, world_size=1, accumulated=ACCUMULATED)


@pytest.mark.parametrize("kind", ["chat", "pairs"])
def test_a_resume_from_a_checkpoint_goes_on_with_the_next_draw(chats: Source, tmp_path: Path, kind: str) -> None:
    assert resumed(chats, tmp_path, kind) == spoken(chats, tmp_path / "reference", kind)


def test_only_the_turns_of_the_assistant_are_learned_if_the_template_marks_them(chats: Source, tmp_path: Path) -> None:
    Logging.log = tmp_path / "rank-0-of-1.jsonl"
    stream = stream_of(chats, tmp_path / "run", "chat")
    trainer(stream, tmp_path, "chat", steps=2, template=MARKED, assistant_only_loss=True).train()
    expected = spoken(chats, tmp_path / "reference", "chat")[:2]
    learned = [[[text, text.split("<assistant>")[1]] for text, _ in step] for step in expected]
    assert trained(tmp_path, world_size=1, accumulated=ACCUMULATED) == learned


def test_packed_blocks_of_ours_are_trained_as_they_are(blocks: Source, tmp_path: Path) -> None:
    expected = expected_items(
        blocks.stream(tmp_path / "reference", step_items=STEP_DRAWS), steps=STEPS, step_items=STEP_DRAWS
    )
    decode = chat_tokenizer().decode
    assert resumed(blocks, tmp_path, "blocks") == [[[decode(ids)] * 2 for ids in step] for step in expected]


def test_messages_kept_as_json_are_handed_over_as_messages(chats: Source, tmp_path: Path) -> None:
    mixer = Mixer(
        ShardSet.open(chats.shards),
        stratified(),
        ledger=tmp_path,
        round_draws=40,
        fields=("meta.kept", "meta.messages", "id"),
    )
    rows = sft_dataset(mixer, columns={"messages": "meta.kept", "id": "id", "draw": "draw"})
    assert isinstance(rows, IterableDataset) and rows.num_shards == 1
    row = next(iter(rows))
    assert row["messages"] == mixer.batch(0, 1).fields["meta.messages"][0] and row["id"] == mixer.ids(0, 1)[0]
    assert type(row["draw"]) is int and orjson.loads(orjson.dumps(row)) == row


def test_a_sample_without_the_field_of_a_column_is_a_sentence(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}]
    rows = [
        {"text": f"text {number}", "skill": "a", **({} if number == 7 else {"chat": messages})} for number in range(20)
    ]
    corpus = Corpus.open(write_corpus(tmp_path / "corpus", rows), fields=FieldMapping(id_field=None))
    tags = tag_corpus(corpus, metadata("skill"), tmp_path / "tags", backend=HERE)
    shards = write_shards(corpus, tags, tmp_path / "shards", holdout=0.0, backend=HERE)
    mixer = Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=20, fields=("meta.chat",))
    stream = StreamRows(mixer, {"messages": "meta.chat"})
    stream.begin(20)
    with pytest.raises(FieldError, match=r"sample '.*' has no field 'meta\.chat'.*field_defaults=") as refused:
        list(itertools.islice(stream, 20))
    assert "\n" not in str(refused.value)


def test_looking_at_rows_decides_no_round_ahead(chats: Source, tmp_path: Path) -> None:
    mixer = live_mixer(chats.shards, tmp_path, step_draws=4, round_draws=4, wait_s=250.0)
    rows = sft_dataset(mixer)
    for _ in range(5):
        assert next(iter(rows)) == {"text": mixer.batch(0, 1).text[0]}
    assert mixer.num_rounds == 1
    with pytest.raises(PolicyError, match=r"^16 rows of the stream were read before the training began.*MixerCallback"):
        for _ in range(20):
            next(iter(rows))


def test_rows_have_no_length_and_every_reader_that_wants_one_gets_a_sentence_at_once(
    chats: Source, tmp_path: Path
) -> None:
    Logging.log = tmp_path / "log"
    mixer = Mixer(ShardSet.open(chats.shards), stratified(), ledger=tmp_path / "run", round_draws=8, step_draws=8)
    rows = sft_dataset(mixer)
    asking: list[Callable[[Any], Any]] = [
        len,
        lambda rows: len(DataLoader(rows, batch_size=2)),
        lambda rows: len(prepare_data_loader(DataLoader(rows, batch_size=2), put_on_device=False)),
        lambda rows: RandomSampler(rows),
        lambda rows: SequentialSampler(rows).__len__(),
        lambda rows: random_split(rows, [0.9, 0.1]),
    ]
    for ask in asking:
        with pytest.raises(LengthError, match=r"^sft_dataset\(\.\.\.\) has no length.*SFTConfig\(max_steps="):
            ask(rows)
    assert rows and not has_length(rows) and isinstance(rows, IterableDataset)
    with pytest.raises(ValueError, match="max_steps"):  # the Trainer's own sentence
        trainer(mixer, tmp_path / "out", "text", steps=-1)
    # A walk, a shuffle and a sampler by length read ahead, and are refused after a few rows.
    for walk in (list, lambda rows: next(iter(rows.shuffle(buffer_size=100))), lambda rows: next(iter(rows.skip(100)))):
        with pytest.raises(PolicyError, match=r"^16 rows of the stream were read before the training began"):
            walk(sft_dataset(mixer))
    assert mixer.num_rounds <= 4


def test_a_strategy_by_length_is_refused_for_rows(chats: Source, tmp_path: Path) -> None:
    Logging.log = tmp_path / "log"
    strategy = (
        {"train_sampling_strategy": "group_by_length"}
        if "train_sampling_strategy" in TrainingArguments.__dataclass_fields__
        else {"group_by_length": True}
    )
    with pytest.raises(PolicyError, match=r"group_by_length', which needs the length of every sample"):
        trainer(stream_of(chats, tmp_path, "pairs"), tmp_path, "pairs", steps=3, **strategy).train()


def test_what_does_not_fit_is_refused_with_a_sentence(chats: Source, tmp_path: Path) -> None:
    Logging.log = tmp_path / "log"

    def refused(sentence: str, number: int, **arguments: Any) -> None:
        mixer = stream_of(chats, tmp_path / str(number), "pairs")
        with pytest.raises(PolicyError, match=sentence):
            trainer(mixer, tmp_path / str(number), "pairs", steps=3, **arguments).train()

    refused(
        r"^SFTConfig\.packing is True: the trainer would collect.*sft_dataset\(PackedTokens",
        0,
        packing=True,
        max_length=64,
    )
    refused(r"^SFTConfig\.shuffle_dataset is True: the trainer would collect", 1, shuffle_dataset=True)
    refused(r"^TrainingArguments\.dataloader_num_workers is 1", 2, dataloader_num_workers=1)
    refused(r"before the training began\. Give the trainer MixerCallback", 3, callbacks=[])
    # The prompt alone fills 10 tokens of some samples, and TRL leaves these samples out.
    refused(r"not whole batches of 4|rows, and its steps so far need", 4, max_length=10)
    mixer, other = (stream_of(chats, tmp_path / name, "pairs") for name in ("mine", "other"))
    callback = MixerCallback(other, lambda _: losses_at(0), every_steps=5)
    with pytest.raises(PolicyError, match=r"the rows of another stream than this callback's stream"):
        trainer(mixer, tmp_path / "mine", "pairs", steps=3, callbacks=[callback]).train()
    with pytest.raises(FieldError, match=r"^column 'messages' is of field 'meta\.mesages'.*give Mixer\(fields="):
        sft_dataset(mixer, columns={"messages": "meta.mesages"})
    with pytest.raises(PolicyError, match=r"lag=0"):
        sft_dataset(live_mixer(chats.shards, tmp_path / "strict", step_draws=8, lag=0))
    assert not records(tmp_path / "nothing")


def test_columns_of_blocks_are_refused_and_a_whole_stream_stays_for_the_trainer(blocks: Source, tmp_path: Path) -> None:
    packed = blocks.stream(tmp_path / "run", step_items=8)
    assert isinstance(packed, PackedTokens)
    with pytest.raises(PolicyError, match=r"^columns are of samples"):
        sft_dataset(packed, columns={"text": "text"})
    assert isinstance(WholeStream(packed), WholeStream)
