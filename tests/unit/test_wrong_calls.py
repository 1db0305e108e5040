"""Wrong calls from Python end in a sentence of skillshard that says what to give, and never in an error from inside.

The calls run in a process of their own, because the test process checks the types of calls.
"""

import subprocess
import sys
from pathlib import Path

from skillshard.shards.read import ShardSet
from tests.conftest import REPOSITORY

OPENINGS = (
    "ss.ShardSet.open",
    "ss.TokenSet.open",
    "ss.Tags.open",
    "ss.SkillGraph.open",
    "ss.Corpus.open",
    "ss.read_policy",
    "ss.replay",
    "ss.replay_chain",
    "ss.open_recorded",
    "ss.open_recorded_chain",
    "ss.verify",
)
"""Functions whose first argument is a place."""

# A call, the error that it ends in, and a part of the sentence. `mixer` has round 0 and no losses. `static()` opens another run.
CALLS = [
    # arguments of a mixer
    ("static(shards='shards')", "ShardError", "shards is 'shards': give an opened shard set"),
    ("static(ledger=None)", "LedgerError", "ledger is None: give the directory of the run's record"),
    ("static(ledger={})", "LedgerError", "ledger is {}: give the directory"),
    ("static(tokens='tokens', unit='tokens')", "TokensError", "tokens is 'tokens': give an opened token set"),
    ("static(repeat=3)", "PolicyError", "repeat is 3: give 'epochs' (default)"),
    ("static(repeat='cap:99999999999999999999')", "PolicyError", "give at most 1,048,576 epochs"),
    ("static(held_out=5)", "PolicyError", "held_out is 5: give a list of names of skills"),
    ("static(held_out=[5])", "PolicyError", "held_out is [5]: give a list of names of skills"),
    ("static(initial_losses='no')", "PolicyError", "initial_losses is 'no': give True, False, or None"),
    ("static(fields=None)", "FieldError", "fields is None: give a tuple of dotted paths"),
    ("static(members=5)", "FieldError", "members is 5: give a tuple of suffixes"),
    ("static(field_defaults=['id'])", "FieldError", "field_defaults is ['id']: give a mapping"),
    (
        "ss.tag_corpus('corpus', None, 'out')",
        "CorpusError",
        "corpus is 'corpus': give an opened corpus, such as Corpus.open('corpus')",
    ),
    ("ss.write_shards('corpus', 'tags', 'out')", "CorpusError", "corpus is 'corpus': give an opened corpus"),
    ("ss.write_shards(ss.Corpus(()), 'tags', 'out')", "TagsError", "tags is 'tags': give an opened set of tags"),
    ("ss.append_shards('shards', None, None, 'out')", "ShardError", "parent is 'shards': give an opened shard set"),
    ("ss.append_shards(shards, None, None, 'out')", "CorpusError", "corpus is None: give an opened corpus"),
    ("ss.write_tokens('shards', None, 'out')", "ShardError", "shards is 'shards': give an opened shard set"),
    (
        "ss.learn_graph('shards', 'g', method='leave_one_out', steps=1, rule='difference')",
        "ShardError",
        "shards is 'shards': give an opened shard set",
    ),
    ("ss.open_recorded(run, 'shards')", "ShardError", "shards is 'shards': give an opened shard set"),
    (
        "ss.PackedTokens(mixer, 'tokens', block_tokens=4, separator=None)",
        "TokensError",
        "tokens is 'tokens': give an opened token set",
    ),
    # positions
    ("mixer.batch(0, -3)", "PolicyError", "-3 draws from draw 0 on were asked for: give whole numbers"),
    ("mixer.batch('0', 3)", "PolicyError", "3 draws from draw '0' on were asked for"),
    ("mixer.batch(0, 2.5)", "PolicyError", "2.5 draws from draw 0 on were asked for"),
    ("mixer.ids(0, 1 << 40)", "PolicyError", "from 0 to 2,147,483,648 draws"),
    ("mixer.at(np.array([0.5]))", "PolicyError", "draws are an array of float64 with the shape (1,)"),
    ("mixer.at(np.array([[0, 1]]))", "PolicyError", "draws are an array of int64 with the shape (1, 2)"),
    ("mixer.at(5)", "PolicyError", "draws are an array of int64 with the shape ()"),
    ("next(mixer.batches(0))", "PolicyError", "batch_size is 0: give the number of samples of a batch, at least 1"),
    ("next(mixer.batches(-3))", "PolicyError", "batch_size is -3"),
    ("next(mixer.batches(None))", "PolicyError", "batch_size is None"),
    ("mixer.round('0')", "PolicyError", "round '0' was asked for: rounds are numbered 0, 1, 2, ..."),
    ("mixer.plan(-1)", "PolicyError", "round -1 was asked for"),
    ("mixer.load_state_dict(mixer.state_dict(), generation='1')", "LedgerError", "generation is '1': give the number"),
    ("mixer.restart(generation=1.5)", "LedgerError", "generation is 1.5: give the number"),
    # steering
    ("steer(run, 'wieghts', why='x')", "PolicyError", "action is 'wieghts' (did you mean 'weights'?)"),
    ("steer(run, 'weights', why='x')", "PolicyError", "the action is 'weights', and weights are None"),
    (
        "steer(run, 'freeze', why='x', weights={'add': 1})",
        "PolicyError",
        "the action is 'freeze', and weights are {'add': 1}",
    ),
    ("steer(run, 'freeze', why=5)", "PolicyError", "a steering needs a reason"),
    # adapters
    ("MixedDataset('runs/1')", "PolicyError", "MixedDataset reads a Mixer, and not 'runs/1'"),
    ("PackedDataset(mixer)", "PolicyError", "PackedDataset reads a PackedTokens, and not Mixer("),
    ("MixedDataset(mixer, rank='0', world_size='1')", "PolicyError", "rank is '0' of world_size '1'"),
    ("MixedDataset(mixer, rank=0.0, world_size=1)", "PolicyError", "rank is 0.0 of world_size 1"),
    (
        "MixedDataset(mixer).read([])",
        "PolicyError",
        "for a batch without indices: give the DataLoader no batch_sampler",
    ),
    ("MixedDataset(mixer).load_state_dict({'first': 0})", "LedgerError", "this is no state of a MixedDataset"),
    ("MixedDataset(mixer).load_state_dict(None)", "LedgerError", "this is no state of a MixedDataset"),
    ("InOrderIterator().load_state_dict({'next': -1})", "LedgerError", "{'next': -1} is no state of a sampler InOrder"),
    ("MixedSource(mixer, num_draws=9, rank='0')", "PolicyError", "rank is '0': give the number of this process"),
    # losses of batches
    ("BatchLosses('mixer')", "PolicyError", "BatchLosses is of a stream, and not of 'mixer'"),
    ("losses(np.array([0, 99])).take()", "ObservationError", "a sample of skill number 99, and the 3 skills"),
    ("losses(np.array([0, -2])).take()", "ObservationError", "a sample of skill number -2, and the 3 skills"),
    ("losses(np.array([0, 0.5]))", "ObservationError", "skills of a batch are an array of float64 with the shape (2,)"),
    ("losses(None)", "ObservationError", "skills of a batch are of type NoneType"),
    (
        "losses(NAMES, labels=LABELS[0])",
        "ObservationError",
        "labels of a batch are an array of torch.int64 with the shape (4,)",
    ),
    ("losses(NAMES, labels=LABELS.numpy())", "ObservationError", "labels of a batch are an array of int64"),
    (
        "losses(NAMES, token_losses=None, logits=torch.ones(2, 4))",
        "ObservationError",
        "logits of a batch are an array of",
    ),
    ("losses(torch.zeros(3, 4, dtype=torch.long))", "ObservationError", "skill of a batch has the shape (3, 4)"),
    ("losses(LABELS, segments=torch.zeros(2, 3))", "ObservationError", "segments of a batch has the shape (2, 3)"),
    # places
    *(
        (
            call,
            "StorageError",
            f"{value} is no path: give a path as a text or as a pathlib.Path, or the address of a store",
        )
        for call, value in (
            *((f"{opening}(None)", "None") for opening in OPENINGS),
            *((f"{opening}(3)", "3") for opening in OPENINGS),
            ("ss.ShardSet.open(b'shards')", "b'shards'"),
            ("ss.Corpus.open([None])", "None"),
            ("export_shards(shards, None, format='jsonl')", "None"),
            ("ss.SkillGraph.identity(shards.skills).save(None)", "None"),
        )
    ),
    ("ss.write_tokens(shards, 3, out)", "TokensError", "the tokenizer is of type builtins.int: give a tokenizer of"),
    # policies
    (
        "ss.policies.skill_it(GRAPH, eta=0.2, normalize_losses='no')",
        "PolicyError",
        "normalize_losses is 'no': give True or",
    ),
    ("ss.policies.skill_it(GRAPH, eta=0.2, any_loss=1)", "PolicyError", "any_loss is 1: give True or False."),
    ("ss.policies.aioli(eta=0.2, period_rounds=20, normalize='no')", "PolicyError", "normalize is 'no': give True or"),
    ("ss.policies.aioli(eta=0.2, period_rounds=20, diagonal=None)", "PolicyError", "diagonal is None: give True or"),
    (
        "ss.policies.graph_refresh(GRAPH, eta=0.2, period_rounds=20, any_loss='no')",
        "PolicyError",
        "any_loss is 'no': give True or False.",
    ),
    # weights and exports
    ("weigh(shards, 'stratified')", "PolicyError", "str is no policy"),
    ("weigh(shards, stratified(), at='9')", "PolicyError", "`at='9'`: give the number of a draw"),
    ("export(format=None)", "ShardError", "`format=None`: give jsonl,"),
    ("export(file_bytes='9')", "ShardError", "`file_bytes='9'`: give 1 or more bytes"),
    ("export(members=5)", "ShardError", "`members=5`: give a list of suffixes"),
    ("export(policy='stratified', draws=5)", "PolicyError", "str is no policy"),
    ("export(policy=stratified(), draws=2.5)", "PolicyError", "`draws=2.5`: give 1 or more"),
    ("export(format='megatron', tokens='tokens')", "TokensError", "tokens is 'tokens': give an opened token set"),
    ("export_shards('shards', out, format='jsonl')", "ShardError", "shards is 'shards': give an opened shard set"),
]

SCRIPT = """
import itertools, sys
import numpy as np
import torch
import skillshard as ss
from skillshard.batch_losses import BatchLosses
from skillshard.export import export_shards
from skillshard.grain import MixedSource
from skillshard.mixing.steer import steer
from skillshard.mixing.weights_file import weigh
from skillshard.policies import stratified
from skillshard.torch import InOrderIterator, MixedDataset, PackedDataset

shards, folder = ss.ShardSet.open(sys.argv[1]), sys.argv[2]
run, out, numbers = f"{folder}/run", f"{folder}/out", itertools.count()
GRAPH = ss.SkillGraph.identity(shards.skills)
NAMES, LABELS = ["add", "carry"], torch.zeros(2, 4, dtype=torch.long)

def static(**arguments):
    chosen = {"shards": shards, "ledger": f"{folder}/{next(numbers)}", "round_draws": 64, **arguments}
    return ss.Mixer(chosen.pop("shards"), stratified(), **chosen)

def losses(skill, labels=LABELS, token_losses=torch.ones(2, 4), **arguments):
    collected = BatchLosses(mixer)
    collected.add(skill, labels, token_losses=token_losses, **arguments)
    return collected

def export(**arguments):
    return export_shards(shards, out, **{"format": "jsonl", **arguments})

mixer = static(ledger=run)
mixer.round(0)
for call in sys.stdin.read().splitlines():
    try:
        print(f"{eval(call)!r}")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_a_wrong_call_ends_in_a_sentence_and_writes_nothing(shards: ShardSet, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(shards.root), str(tmp_path)]
    calls = "\n".join(call for call, _, _ in CALLS)
    process = subprocess.run(command, input=calls, capture_output=True, text=True, cwd=REPOSITORY)
    assert process.stderr == ""
    outcomes = process.stdout.splitlines()
    assert len(outcomes) == len(CALLS)
    wrong = [
        (call, outcome)
        for (call, name, part), outcome in zip(CALLS, outcomes, strict=True)
        if not outcome.startswith(f"{name}: ") or part not in outcome
    ]
    assert wrong == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not (tmp_path / "run" / "steers").exists()
