"""The offline fitter on planted laws, its files, its limits and its sentences."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillshard.errors import FitError
from skillshard.fitting import regmix
from skillshard.fitting.finished import finished_run, gather_runs
from skillshard.fitting.mixing_law import MixingLaw, fit_mixing_law
from skillshard.fitting.proposal import propose_weights
from skillshard.fitting.runs import Runs, make_runs, read_runs
from skillshard.mixing.mixer import Mixer
from skillshard.policies import fixed, softmax_loss, stratified
from skillshard.policies.scaling_law import fit_scaling_law
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import write_tokens
from tests.commands import skillshard, works
from tests.conftest import HERE
from tests.tokenizers_trained import byte_tokenizer, counted, uneven_shards

SKILLS = ("add", "carry", "negate")
EXAMS = ("easy", "hard")
PLANTED = MixingLaw(np.array([1.0, 1.5]), np.array([[-2.0, 0.3], [0.2, -1.0], [0.1, 0.1]]))
SAMPLES = {"add": 100, "carry": 700, "negate": 200}


def planted(num: int = 24, noise: float = 0.0) -> Runs:
    random = np.random.default_rng(0)
    weights = random.dirichlet(np.ones(3), num)
    return Runs(SKILLS, EXAMS, weights, PLANTED.predict(weights) + noise * random.normal(size=(num, 2)))


def best_on_a_grid(kl: float, most: np.ndarray) -> np.ndarray:
    """Search the best mixture by the planted law independently of the optimiser."""
    steps = np.array([(a, b, 400 - a - b) for a in range(401) for b in range(401 - a)]) / 400
    steps = steps[(steps <= most + 1e-9).all(axis=1)]
    prior = np.array([0.1, 0.7, 0.2])
    divergence = (steps * np.log(np.maximum(steps, 1e-12) / prior)).sum(axis=1)
    return steps[(PLANTED.predict(steps).mean(axis=1) + kl * divergence).argmin()]


def test_a_planted_law_is_found() -> None:
    law = fit_mixing_law(planted())
    np.testing.assert_allclose(law.constant, PLANTED.constant, atol=1e-4)
    np.testing.assert_allclose(law.slopes, PLANTED.slopes, atol=1e-3)


@pytest.mark.parametrize(("kl", "draws"), [(0.05, None), (0.5, None), (0.05, 1000), (0.005, 1000)])
def test_the_proposal_is_the_best_mixture_of_a_grid(kl: float, draws: int | None) -> None:
    proposal = propose_weights(planted(), kl=kl, num_samples=SAMPLES, epochs=4.0, draws=draws)
    most = np.ones(3) if draws is None else np.minimum(4 * np.array([100, 700, 200]) / draws, 1)
    weights = np.array([proposal.weights[skill] for skill in SKILLS])
    np.testing.assert_allclose(weights, best_on_a_grid(kl, most), atol=0.004)
    assert np.all(weights <= most + 1e-9)
    assert weights.sum() == pytest.approx(1)
    assert [proposal.most[skill] for skill in SKILLS] == pytest.approx(most.tolist())


def test_a_high_price_of_divergence_gives_the_prior_and_a_target_its_own_skill() -> None:
    near = propose_weights(planted(), kl=1e4, num_samples=SAMPLES)
    assert [near.weights[skill] for skill in SKILLS] == pytest.approx([0.1, 0.7, 0.2], abs=1e-4)
    assert propose_weights(planted(), kl=0.0, targets=["easy"]).weights["add"] > 0.99
    assert propose_weights(planted(), kl=0.0, targets=["hard"]).weights["carry"] > 0.99


def test_runs_that_a_fit_has_not_seen_measure_the_fit() -> None:
    assert min(propose_weights(planted()).held_out.values()) > 0.99
    noise = Runs(SKILLS, EXAMS, planted().weights, np.random.default_rng(1).uniform(1, 2, (24, 2)))
    assert max(propose_weights(noise).held_out.values()) < 0.6


def test_trees_propose_a_good_mixture_of_a_planted_law() -> None:
    runs = planted(200, noise=0.005)
    proposal = propose_weights(runs, method="regmix", kl=0.0)
    weights = np.array([[proposal.weights[skill] for skill in SKILLS]])
    every = PLANTED.predict(runs.weights).mean(axis=1)
    assert PLANTED.predict(weights).mean() < np.quantile(every, 0.1)
    assert min(proposal.held_out.values()) > 0.9
    assert proposal == propose_weights(runs, method="regmix", kl=0.0)


def test_random_candidates_keep_the_limit() -> None:
    tried = regmix.candidates(np.array([0.1, 0.7, 0.2]), np.array([0.4, 1.0, 1.0]), 0)
    assert len(tried) > 1000
    assert tried[:, 0].max() <= 0.4 + 1e-9
    np.testing.assert_allclose(tried.sum(axis=1), 1)


def test_a_scaling_law_is_found_and_bounded() -> None:
    draws = np.geomspace(1e3, 1e6, 60)
    for law in ((3.0, 0.7, 0.3), (5.0, 0.6, 0.5)):
        fitted = fit_scaling_law(draws, np.exp(law[1]) + np.exp(law[0]) * draws ** -law[2])
        np.testing.assert_allclose(fitted, law, atol=0.02)
    flat = fit_scaling_law(draws, np.full(60, 0.01))
    assert flat is not None
    assert flat[1] >= 0.5


def write_json(place: Path, runs: Runs) -> None:
    rows = [
        {"weights": dict(zip(SKILLS, weights, strict=True)), "losses": dict(zip(EXAMS, losses, strict=True))}
        for weights, losses in zip(runs.weights.tolist(), runs.losses.tolist(), strict=True)
    ]
    place.write_text(json.dumps({"schema": "skillshard/runs/1", "runs": rows}))


def write_csv(place: Path, runs: Runs) -> None:
    header = ["note", *(f"weights/{name}" for name in SKILLS), *(f"losses/{name}" for name in EXAMS)]
    rows = [["x", *row] for row in np.hstack([runs.weights, runs.losses]).tolist()]
    place.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]))


def test_runs_are_the_same_from_json_csv_and_a_directory(tmp_path: Path) -> None:
    runs = planted()
    write_json(tmp_path / "runs.json", runs)
    write_csv(tmp_path / "runs.csv", runs)
    (tmp_path / "parts").mkdir()
    write_json(tmp_path / "parts" / "0.json", runs.some(range(10)))
    write_csv(tmp_path / "parts" / "1.csv", runs.some(range(10, 24)))
    for place in ("runs.json", "runs.csv", "parts"):
        read = read_runs(tmp_path / place)
        assert (read.train_skills, read.eval_skills) == (SKILLS, EXAMS)
        np.testing.assert_allclose(read.weights, runs.weights, rtol=1e-12)
        np.testing.assert_allclose(read.losses, runs.losses, rtol=1e-12)


def test_the_command_writes_what_the_function_proposes(tmp_path: Path) -> None:
    write_json(tmp_path / "runs.json", planted())
    code, text, err = skillshard(
        "fit", str(tmp_path / "runs.json"), "--kl", "0.01", "--out", str(tmp_path / "fit.json")
    )
    assert code == 0, err
    proposal = propose_weights(read_runs(tmp_path / "runs.json"), kl=0.01)
    assert (tmp_path / "fit.json").read_bytes() == proposal.to_bytes()
    assert "mean loss expected" in text
    assert skillshard("fit", str(tmp_path / "runs.json"), "--target", "hardd").sentence.startswith(
        "no run has a loss of"
    )


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: fit_mixing_law(planted(3)),
            "3 runs with 3 mixtures cannot tell 4 numbers of a law over 3 skills: give at least 4 runs",
        ),
        (
            lambda: propose_weights(make_runs([{"add": 1.0, "carry": 1.0}] * 9, [{"easy": 1.0 + n} for n in range(9)])),
            "9 runs with 1 mixture cannot tell 3 numbers of a law over 2 skills",
        ),
        (
            lambda: fit_mixing_law(
                make_runs([{"a": 1.0 * n, "b": 8.0 - n, "c": 2.0} for n in range(9)], [{"easy": 1.0}] * 9)
            ),
            "the weights of 3 skills always change together in 9 runs, so their effects cannot be told apart",
        ),
        (
            lambda: make_runs([{"add": 0.0}], [{"easy": 1.0}]),
            "run 0: weights must be finite numbers >= 0, and their sum a finite number > 0; their sum is 0.0.",
        ),
        (
            lambda: make_runs([{"add": 1e308, "carry": 1e308}], [{"easy": 1.0}]),
            "run 0: weights must be finite numbers >= 0, and their sum a finite number > 0; their sum is inf.",
        ),
        (
            lambda: make_runs([{"add": 1.0}], [{"easy": float("nan")}]),
            "run 0: losses must be finite numbers > 0 for each of easy; easy is nan",
        ),
        (
            lambda: make_runs([{"add": 1.0}] * 2, [{"easy": 1.0}, {"hard": 1.0}]),
            "run 0: losses must be finite numbers > 0 for each of easy, hard; none is bad, missing: hard.",
        ),
        (lambda: propose_weights(planted(), targets=["hardd"]), "no run has a loss of 'hardd' (did you mean 'hard'?)"),
        (lambda: propose_weights(planted(), draws=10), "a repetition limit needs the number of samples of each skill"),
        (
            lambda: propose_weights(planted(), num_samples=SAMPLES, epochs=1.0, draws=2000),
            "1 epochs of all samples are 1,000 draws, fewer than the 2,000 of the run",
        ),
        (
            lambda: propose_weights(planted(), num_samples={"add": 5, "sub": 1}),
            "without samples: carry, negate; without a weight in any run: sub.",
        ),
        (lambda: propose_weights(planted(), kl=-1.0), "`kl=-1.0`: give the price of the divergence"),
        (lambda: propose_weights(planted(), kl=float("inf")), "`kl=inf`: give the price of the divergence"),
        (lambda: propose_weights(planted(), draws=0, num_samples=SAMPLES), "`draws=0`: give the number of draws"),
        (lambda: propose_weights(planted(), epochs=float("nan")), "`epochs=nan`: give the largest number of passes"),
        (lambda: propose_weights(planted(), num_samples={**SAMPLES, "add": -1}), "without samples: add;"),
        (
            lambda: propose_weights(planted(), method="regmix"),
            "24 runs are too few for trees: give at least 50, or fit a law",
        ),
    ],
)
def test_what_cannot_be_fitted_gets_one_clear_sentence(build: Any, sentence: str) -> None:
    with pytest.raises(FitError, match=re.escape(sentence)):
        build()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("runs.json", '{"schema": "skillshard/runs/2", "runs": []}', "holds no runs (schemas/runs-1.json): schema: "),
        ("runs.json", '{"schema": "skillshard/runs/1", "runs": []}', "holds no runs: give a .json or .csv file"),
        (
            "runs.csv",
            "a,b\n1,2\n",
            "needs columns weights/SKILL and losses/SKILL, separated by commas, one row for each run; it has a, b.",
        ),
        ("runs.csv", "", "needs columns weights/SKILL and losses/SKILL"),
        (
            "runs.csv",
            "weights/add,losses/easy\n1,2,3\n",
            "run 0: the row has 3 cells, and the first line names 2 columns",
        ),
        (
            "runs.csv",
            "weights/add,losses/easy\n1,2\n1\n",
            "run 1: the row has 1 cell, and the first line names 2 columns",
        ),
        ("runs.csv", "weights/add,weights/add,losses/easy\n1,2,3\n", "has the column weights/add twice"),
        ("runs.csv", "weights/add,losses/easy\n1,low\n", "run 0: losses/easy is 'low', not a number."),
    ],
)
def test_a_file_without_runs_gets_one_clear_sentence(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FitError, match=re.escape(sentence)):
        read_runs(tmp_path / name)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_table_of_runs_may_have_the_line_ends_of_any_system(line_end: str, tmp_path: Path) -> None:
    rows = ("\ufeffnote,weights/add,losses/easy", "x,2,1.5", "", "y,3,1.25", "")
    (tmp_path / "runs.csv").write_bytes(line_end.join(rows).encode())
    assert read_runs(tmp_path / "runs.csv").losses.tolist() == [[1.5], [1.25]]


def test_a_target_that_is_named_twice_counts_once() -> None:
    once, twice = (
        propose_weights(planted(), targets=targets) for targets in (["easy", "hard"], ["easy", "hard", "easy"])
    )
    assert once == twice


# --- runs out of their ledgers ---------------------------------------------------------------------------------------


def a_run(shards: ShardSet, ledger: Path, weights: Sequence[float], *, draws: int = 300, **arguments: Any) -> Mixer:
    """Run with fixed weights, and end with losses that follow a planted law."""
    policy = fixed(dict(zip(shards.skills, weights, strict=True)))
    mixer = Mixer(shards, policy, ledger=ledger, round_draws=64, **arguments)
    shares = np.bincount(mixer.batch(0, draws).skill_number, minlength=3) / draws
    mixer.report(1, dict.fromkeys(shards.skills, 9.0), draw=0)
    mixer.report(2, dict.fromkeys(shards.skills, 5.0), draw=100)
    losses = 1 + np.exp(shares @ np.array([[-1.0, 0.3, 0.1], [0.2, -0.8, 0.0], [0.1, 0.2, -0.5]]))
    mixer.report(3, dict(zip(shards.skills, losses.tolist(), strict=True)), draw=draws)
    return mixer


def test_a_ledger_gives_the_shares_drawn_and_the_last_losses(shards: ShardSet, tmp_path: Path) -> None:
    mixer = a_run(shards, tmp_path / "run", [0.5, 0.3, 0.2])
    run = finished_run(mixer.ledger)
    assert list(run.weights.values()) == np.bincount(mixer.batch(0, 300).skill_number, minlength=3).tolist()
    runs = gather_runs([str(tmp_path / "run")])
    np.testing.assert_allclose(runs.weights[0], [0.5, 0.3, 0.2], atol=0.01)
    assert runs.eval_skills == shards.skills
    assert runs.losses[0].tolist() == list(run.losses.values())
    assert max(run.losses.values()) < 3


def test_the_mean_mixture_of_a_run_with_live_weights_counts_what_was_drawn(shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(
        shards, softmax_loss(temperature=0.1), ledger=tmp_path / "run", round_draws=64, lag=0, initial_losses=False
    )
    for number in range(5):
        mixer.round(number)
        mixer.report(number, dict(zip(shards.skills, (1.0, 0.5, 0.1 + number / 4), strict=True)), draw=64 * number + 64)
    drawn = np.bincount(mixer.batch(0, 320).skill_number, minlength=3)
    assert len({tuple(mixer.round(number).weights) for number in range(5)}) > 2
    assert list(finished_run(mixer.ledger).weights.values()) == drawn.tolist()


def test_fit_reads_ledgers_and_files_together(shards: ShardSet, tmp_path: Path) -> None:
    mixtures = np.random.default_rng(5).dirichlet([1.0, 1.0, 1.0], size=8)
    ledgers = [
        a_run(shards, tmp_path / "runs" / f"{number}", mixture).ledger
        for number, mixture in enumerate(mixtures.tolist())
    ]
    pairs = [finished_run(ledger).model_dump() for ledger in ledgers]
    for number in (5, 6, 7):
        shutil.rmtree(tmp_path / "runs" / f"{number}")
    (tmp_path / "runs" / "three.json").write_text(json.dumps({"schema": "skillshard/runs/1", "runs": pairs[5:]}))
    places = [*(str(tmp_path / "runs" / f"{number}") for number in range(5)), str(tmp_path / "runs" / "three.json")]
    code, text, err = skillshard("fit", *places, "--out", str(tmp_path / "fit.json"))
    assert code == 0, err
    assert "mean loss expected" in text
    expected = propose_weights(make_runs([run["weights"] for run in pairs], [run["losses"] for run in pairs]))
    assert (tmp_path / "fit.json").read_bytes() == expected.to_bytes()
    together = gather_runs([str(tmp_path / "runs")])
    assert len(together) == 8
    np.testing.assert_array_equal(together.weights, gather_runs([f"{places[0]}/", *places[1:]]).weights)


def test_a_directory_without_runs_gets_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"holds no runs: give the ledgers of runs, \.json or \.csv files"):
        gather_runs([str(tmp_path)])


def no_losses(shards: ShardSet, folder: Path) -> None:
    Mixer(shards, stratified(), ledger=folder / "b", round_draws=64).round(0)


def losses_of_the_start(shards: ShardSet, folder: Path) -> None:
    mixer = Mixer(shards, stratified(), ledger=folder / "b", round_draws=64)
    mixer.report(0, dict.fromkeys(shards.skills, 9.0), draw=0)


def losses_beyond_what_was_drawn(shards: ShardSet, folder: Path) -> None:
    mixer = Mixer(shards, stratified(), ledger=folder / "b", round_draws=64)
    mixer.round(3)
    mixer.report(0, dict.fromkeys(shards.skills, 9.0), draw=300)


def a_shorter_run(shards: ShardSet, folder: Path) -> None:
    a_run(shards, folder / "b", [0.2, 0.3, 0.5], draws=200)


def a_run_over_tokens(shards: ShardSet, folder: Path) -> None:
    tokenizer = byte_tokenizer(sample.text for sample in shards.train["add"])
    counts = write_tokens(shards, tokenizer, folder / "counts", backend=HERE)
    a_run(shards, folder / "b", [0.2, 0.3, 0.5], unit="tokens", tokens=counts)


def a_part_of_the_losses(shards: ShardSet, folder: Path) -> None:
    mixer = Mixer(shards, stratified(), ledger=folder / "b", round_draws=64)
    mixer.batch(0, 300)
    mixer.report(0, {"add": 1.0, "negate": 1.0}, draw=300)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (no_losses, r"b holds no losses, so the final losses are not known. Report losses at the end"),
        (losses_of_the_start, r"b holds losses of draw 0 only, so the final losses are not known"),
        (losses_beyond_what_was_drawn, r"b has losses of draw 300 and no round 4 with that draw"),
        (a_shorter_run, r"b has last losses at draw 200, .*a has 300: the effect of a mixture shows"),
        (a_run_over_tokens, r"a has weights that count samples, .*b has tokens: the effect of a mixture shows"),
        (a_part_of_the_losses, r"b: losses must be .* for each of add, carry, negate; none is bad, missing: carry"),
    ],
)
def test_ledgers_that_tell_nothing_of_a_mixture_get_one_clear_sentence(
    shards: ShardSet, tmp_path: Path, damage: Callable[[ShardSet, Path], None], sentence: str
) -> None:
    a_run(shards, tmp_path / "a", [0.5, 0.3, 0.2])
    damage(shards, tmp_path)
    with pytest.raises(FitError, match=sentence):
        gather_runs([str(tmp_path / "a"), str(tmp_path / "b")])


@pytest.mark.parametrize(("unfinished", "left_out"), [(no_losses, "b"), (losses_of_the_start, "b")])
def test_runs_without_losses_are_left_out_of_a_directory_with_a_warning(
    shards: ShardSet, tmp_path: Path, unfinished: Callable[[ShardSet, Path], None], left_out: str
) -> None:
    """A directory may hold a run that is under way. Only the finished runs are read, in their order."""
    for name, weights in (("a", [0.5, 0.3, 0.2]), ("c", [0.2, 0.3, 0.5])):
        a_run(shards, tmp_path / "runs" / name, weights)
    finished = gather_runs([str(tmp_path / "runs")])
    unfinished(shards, tmp_path / "runs")
    with pytest.warns(UserWarning, match=rf"1 run without losses left out: {tmp_path}/runs/{left_out}\."):
        runs = gather_runs([str(tmp_path / "runs")])
    assert len(runs) == len(finished) == 2
    np.testing.assert_array_equal(runs.weights, finished.weights)
    np.testing.assert_array_equal(runs.losses, finished.losses)


def test_a_directory_of_runs_without_losses_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    no_losses(shards, tmp_path / "runs")
    with pytest.raises(FitError, match=r"runs/b holds no losses, so the final losses are not known"):
        gather_runs([str(tmp_path / "runs")])


def test_the_share_of_tokens_counts_where_weights_do(tmp_path: Path) -> None:
    shards = uneven_shards(tmp_path)
    counts = counted(shards, tmp_path / "counts")
    mixer = a_run(shards, tmp_path / "run", [0.6, 0.3, 0.1], unit="tokens", tokens=counts, draws=640)
    weights = list(finished_run(mixer.ledger).weights.values())
    assert mixer.round(0).counts[2] < 0.05 * 64
    np.testing.assert_allclose(np.array(weights) / sum(weights), [0.6, 0.3, 0.1], atol=0.01)


def test_an_out_that_cannot_be_written_is_refused_before_the_proposal_is_shown(tmp_path: Path) -> None:
    mixtures = (0.5, 0.7, 0.3, 0.2)
    runs = [{"weights": {"a": a, "b": 1 - a}, "losses": {"a": 1.3 - a / 2, "b": 1.6 + a}} for a in mixtures]
    (tmp_path / "runs.json").write_text(json.dumps({"schema": "skillshard/runs/1", "runs": runs}))
    (tmp_path / "folder").mkdir()
    outcome = skillshard("fit", tmp_path / "runs.json", "--out", tmp_path / "folder")
    assert outcome.code == 1 and outcome.out == "" and "folder is a directory: give --out a file" in outcome.sentence
    assert "log-linear, 4 runs" in works("fit", tmp_path / "runs.json", "--out", tmp_path / "proposal.json")
