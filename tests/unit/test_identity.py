"""The identity of a model is the content of its files, wherever the files lie. The inputs of a training that are not portable count too."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.errors import SkillshardError, TagsError
from skillshard.graph import learn
from skillshard.graph.trials import Schedule
from skillshard.proxy import identity
from skillshard.proxy.device import Compute
from skillshard.proxy.identity import directory_identity, model_identity, training_identity
from skillshard.proxy.reading_choice import ReadingChoice
from skillshard.taggers.clusters.sentence_encoder import SentenceEncoder
from skillshard.taggers.losses.saved import open_loss_tagger
from skillshard.taggers.losses.tagger import loss_tagger
from tests.conftest import HERE, samples, write_corpus


def files(folder: Path, **contents: str) -> Path:
    for name, content in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_a_copy_is_the_same_model_and_a_changed_added_or_missing_file_makes_another(tmp_path: Path) -> None:
    original = files(tmp_path / "here", config="{}", pooling__config="mean")
    before = directory_identity(original)
    assert set(before) == {"config", "pooling/config"}
    copied = shutil.copytree(original, tmp_path / "there")
    assert directory_identity(copied) == before
    assert directory_identity(files(copied, pooling__config="max")) != before
    assert directory_identity(files(original, weights="1")) != before


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    folder = files(tmp_path / "here", config="{}")
    before = directory_identity(folder)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("1")
    (folder / ".gitattributes").write_text("*")
    assert directory_identity(folder) == before


@pytest.mark.parametrize("name", identity.SIZES)
def test_a_new_proxy_is_known_by_its_name(name: str) -> None:
    assert model_identity(name) == name


def test_a_training_is_known_by_its_version_and_by_the_packages_that_compute_it() -> None:
    known = training_identity()
    assert known == {"version": identity.TRAINING_VERSION, "torch": torch.__version__, "numpy": numpy.__version__}


def keys_of_runs(**changes: Any) -> set[str]:
    """Return the keys of the trials of a graph, without training."""
    planned = learn.plan_trials("linear", ("add", "carry"), ("add", "carry"), batch_size=8, seeds=[0])
    arguments: dict[str, Any] = {"model": changes.get("model", "place"), "steps": 2, "checkpoints": 1, "lr": 1e-3}
    recipe = learn.Recipe(**arguments, device=changes.get("device", "cpu"))
    names = [*learn.READ_BY, *learn.MEASURED_BY, "reduction"]
    made_from = dict.fromkeys(names) | {"proxy": changes.get("proxy", {"weights": "1"})}
    schedule = Schedule(0, math.inf)
    tasks = learn._tasks(changes["folder"], recipe, planned, [], 0, 1, schedule, None, made_from, ["add"])[1]
    return {task.key for task in tasks}


def test_the_record_of_a_run_is_used_again_only_where_everything_that_moves_its_losses_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = keys_of_runs(folder=str(tmp_path))
    assert keys_of_runs(folder=str(tmp_path), model="elsewhere") == usual
    assert keys_of_runs(folder=str(tmp_path), device="cuda:1") == keys_of_runs(folder=str(tmp_path), device="cuda")
    assert keys_of_runs(folder=str(tmp_path), device="cuda").isdisjoint(usual)
    assert keys_of_runs(folder=str(tmp_path), proxy={"weights": "2"}).isdisjoint(usual)
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert keys_of_runs(folder=str(tmp_path)).isdisjoint(usual)
    monkeypatch.undo()
    monkeypatch.setattr(identity, "TRAINING_VERSION", 0)
    assert keys_of_runs(folder=str(tmp_path)).isdisjoint(usual)


# --- taggers ------------------------------------------------------------------------------------------------------------


def encoder(model: str, **changes: Any) -> SentenceEncoder:
    arguments: dict[str, Any] = {
        "batch_size": 32,
        "device": "cpu",
        "dim": 8,
        "dtype": "float32",
        "files": {"config.json": "1"},
        "max_length": 16,
        "model": model,
        "prompt": "",
        "weights_digest": "0",
        "windows": "first",
    }
    return SentenceEncoder(**(arguments | changes))


def test_clusters_know_the_directory_of_an_encoder_by_its_content() -> None:
    usual = taggers.embedding(encoder("/here"), skills=3).arguments
    assert taggers.embedding(encoder("/there"), skills=3).arguments == usual
    assert taggers.embedding(encoder("/here", files={"config.json": "2"}), skills=3).arguments != usual
    gpus = [taggers.embedding(encoder("/here", device=f"cuda:{number}"), skills=3).arguments for number in (0, 1)]
    assert gpus[0] == gpus[1] != usual
    hub = [taggers.embedding(encoder(name, files=None), skills=3).arguments for name in ("one/model", "another/model")]
    assert hub[0] != hub[1]


@pytest.fixture
def proxy(tmp_path: Path) -> Path:
    from tests.adapters.hf_trainer import byte_tokenizer, tiny

    tiny().save_pretrained(tmp_path / "proxy")
    byte_tokenizer().save_pretrained(tmp_path / "proxy")
    return tmp_path / "proxy"


def test_a_loss_tagger_is_the_same_with_a_copy_of_its_proxy_and_another_with_a_changed_one(
    proxy: Path, tmp_path: Path
) -> None:
    def arguments(place: Path) -> dict[str, Any]:
        return loss_tagger(
            skills=2,
            trials=1,
            checkpoints=1,
            steps=2,
            fitting_samples=20,
            compute=Compute(device="cpu"),
            reading=ReadingChoice(proxy=str(place)),
        ).arguments

    usual = arguments(proxy)
    copy = shutil.copytree(proxy, tmp_path / "copy")
    assert arguments(copy) == usual
    files(copy, config__json="{}")
    assert arguments(copy) != usual


def small_tagger(proxy: Path) -> Any:
    """Make a tagger that reads by the files of a proxy as they are now."""
    return loss_tagger(
        skills=2,
        trials=1,
        checkpoints=1,
        steps=2,
        fitting_samples=40,
        compute=Compute(device="cpu"),
        reading=ReadingChoice(proxy=str(proxy)),
    )


def test_a_changed_proxy_is_noticed_when_tag_goes_on_and_when_its_model_tags_again(proxy: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(write_corpus(tmp_path / "corpus", samples(add=30, carry=30)))
    finder = small_tagger(proxy)
    taggers.tag_corpus(corpus, finder, tmp_path / "tags", backend=HERE)
    open_loss_tagger(tmp_path / "tags")
    (proxy / "generation_config.json").write_text("{}")
    with pytest.raises(TagsError, match=r"its files have changed since \(generation_config.json: .*Restore the files"):
        open_loss_tagger(tmp_path / "tags")
    changed = small_tagger(proxy)
    with pytest.raises(SkillshardError, match=r"generation_config"):
        taggers.tag_corpus(corpus, changed, tmp_path / "tags", backend=HERE)
    assert replace(changed, proxy_identity=finder.proxy_identity).arguments == finder.arguments
