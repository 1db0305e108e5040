"""Write a miniature of the experiment, for a machine without a GPU: python examples/paper/miniature.py OUT

OUT/tasks has files in the layout of Natural Instructions, OUT/model a tiny GPT-Neo with random weights and a tokenizer of bytes.
"""

import argparse
import itertools
import json
import random
from pathlib import Path

import skillshard as ss

ss.needed("hf", what="examples/paper/miniature.py")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

NUM_INSTANCES = 60
NAMES = {
    "English": ["Ann", "Ben", "Carol", "Dan", "Eve", "Fred", "Grace", "Henry"],
    "Spanish": ["Ana", "Benito", "Carla", "Diego", "Elena", "Felipe", "Graciela", "Hugo"],
}
PLACES = {
    "English": ["garden", "kitchen", "street", "school", "forest", "office", "market", "theatre"],
    "Spanish": ["Madrid", "Lima", "Quito", "Bogotá", "Sevilla", "Caracas", "Rosario", "Managua"],
}
# The text of a passage, a question about the passage, and its answer.
SENTENCES = {
    "English": ("{name} is in the {place}.", "Where is {name} now, after the day in the {place}?", "in the {place}"),
    "Spanish": ("{name} está en {place}.", "¿Dónde está {name}, después del día en {place}?", "en {place}"),
}


def instances(language: str, category: str, chosen: random.Random) -> list[dict[str, object]]:
    """Make the instances of a task, each with an input and a list of outputs."""
    rows = []
    pairs = chosen.sample([*itertools.product(NAMES[language], PLACES[language])], NUM_INSTANCES)
    for number, (name, place) in enumerate(pairs):
        passage, question, answer = (part.format(name=name, place=place) for part in SENTENCES[language])
        # Every second claim repeats the passage.
        other = passage if number % 2 else SENTENCES[language][0].format(name=name, place="sea")
        texts = {
            "Question Answering": (f"{passage} {question}", answer),
            "Question Generation": (passage, question),
            "Text Matching": (f"{passage} {other}", "same" if passage == other else "different"),
            "Stance Detection": (f"{passage} Claim: {other}", "agree" if passage == other else "disagree"),
        }
        rows.append({"input": texts[category][0], "output": [texts[category][1]]})
    return rows


def write_tasks(folder: Path) -> None:
    """Write a file for each task."""
    folder.mkdir(parents=True)
    tasks = [
        ("English", "Question Answering"),
        ("English", "Question Generation"),
        ("Spanish", "Question Answering"),
        ("Spanish", "Question Generation"),
        ("English", "Text Matching"),
        ("English", "Stance Detection"),
    ]
    for number, (language, category) in enumerate(tasks, start=1):
        name = f"task{number:03d}_{language.lower()}_{category.lower().replace(' ', '_')}"
        chosen = random.Random(number)
        task = {
            "Source": ["handmade"],
            "Categories": [category],
            "Definition": [f"Do {category.lower()} in {language}."],
            "Input_language": [language],
            "Output_language": [language],
            "Positive Examples": [{"input": "a", "output": "b", "explanation": "c"}],
            "Negative Examples": [],
            "Instances": [
                {"id": f"{name}-{row:04d}", **instance}
                for row, instance in enumerate(instances(language, category, chosen))
            ],
        }
        (folder / f"{name}.json").write_text(json.dumps(task, ensure_ascii=False, indent=1))


def write_model(folder: Path) -> None:
    """Write a model of two layers and a tokenizer with a token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {"<|endoftext|>": 0, **{byte: number for number, byte in enumerate(alphabet, start=1)}}
    tokenizer = Tokenizer(models.BPE(tokens, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special, pad_token=special).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=len(tokens),
        max_position_embeddings=256,
        hidden_size=32,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPTNeoForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="Directory to write.")
    out = parser.parse_args().out
    write_tasks(out / "tasks")
    write_model(out / "model")
