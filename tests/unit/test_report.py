"""`skillshard report`: the history of runs as one page, and as JSON."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import skillshard as ss
from skillshard import policies
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.records import open_records
from skillshard.mixing.steer import steer
from skillshard.printable import shortened
from skillshard.report.history import POINTS, Event, ReportFacts, RunHistory, report_facts
from skillshard.report.page import COLUMNS, page_of
from skillshard.report.run_facts import run_facts
from skillshard.shards.read import ShardSet
from tests.commands import fails, skillshard, works
from tests.conftest import REPOSITORY, samples, tag_and_shard, write_corpus

STRANGE = ('<b>&"q"\'', "שלום 😀", "</script>")
"""Names that would break a page without escapes."""


def losses_at(step: int, skills: tuple[str, ...]) -> dict[str, float]:
    return {skill: 3 / (1 + step / 50) + number / 7 for number, skill in enumerate(skills)}


def train(shards: ShardSet, ledger: Path, *, eta: float = 0.5, num_rounds: int = 12, round_draws: int = 50) -> ss.Mixer:
    graph = SkillGraph.chain(shards.skills)
    policy = policies.chain(policies.skill_it(graph, eta=eta), policies.floor(0.01))
    mixer = ss.Mixer(shards, policy, ledger=ledger, round_draws=round_draws, step_draws=10, lag="live")
    for number in range(num_rounds):
        mixer.report(number * round_draws // 10, losses_at(number * 5, shards.skills))
        mixer.round(number)
    return mixer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs over the same shards, with the graph of their policy, and a run over other skills."""
    folder = tmp_path_factory.mktemp("report")
    shards = tag_and_shard(write_corpus(folder / "corpus", samples(add=300, carry=300, negate=300)), folder)
    train(shards, folder / "one")
    train(shards, folder / "two", eta=1.0)
    SkillGraph.chain(shards.skills).save(folder / "graph.json")
    (folder / "other").mkdir()
    strange = tag_and_shard(
        write_corpus(folder / "strange", samples(**dict.fromkeys(STRANGE, 100), add=100)), folder / "other"
    )
    train(strange, folder / "three")
    return folder


def page(facts: ReportFacts) -> str:
    return page_of(facts, num_lines=8)


def test_the_facts_are_those_of_the_ledger_and_of_inspect(root: Path) -> None:
    (run,) = report_facts([root / "one"]).runs
    rounds = [*open_records(DirectoryLedger(root / "one")).rounds]
    assert run.facts == run_facts(DirectoryLedger(root / "one"))
    assert [row.first_draw for row in run.rounds] == [record.first_draw for record in rounds]
    for number, skill in enumerate(run.skills):
        assert skill.weights == [record.weights[number] for record in rounds]
        assert skill.epochs == [record.epochs[number] for record in rounds]
        # The last shares are the draws that inspect shows, divided by all draws.
        shown = run.facts.skills[number]
        assert skill.achieved[-1] == shown.num_drawn / run.facts.num_draws
        assert skill.intended[-1] == pytest.approx(shown.intended / run.facts.num_draws)
    assert [course.losses[-1] for course in run.losses] == [skill.last for skill in run.facts.losses]
    assert {row.observed_to for row in run.rounds} <= {report.draw for report in run.reports}
    assert run.shards is not None and run.shards.num_train == sum(skill.num_train for skill in run.shards.skills)
    assert run.graph is None and run.no_shards is None


def test_the_json_fits_its_schema(root: Path, tmp_path: Path) -> None:
    works("report", root / "one", root / "three", "--format", "json", "--out", tmp_path / "report.json")
    facts = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(facts, json.loads((REPOSITORY / "schemas" / "report-1.json").read_text()))
    assert [run["facts"]["place"] for run in facts["runs"]] == [str(root / "one"), str(root / "three")]


def test_the_page_shows_runs_side_by_side_with_the_union_of_their_skills(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    printed = works("report", root / "one", root / "two", root / "three", "--graph", root / "graph.json", "--out", out)
    text = out.read_text()
    assert printed == f"{out}: 3 runs, {out.stat().st_size:,} bytes.\n"
    assert text.count('<section class="run history">') == 3 and text.count('<svg class="chart"') == 9
    table = text[text.index('<table id="skills"') :].partition("</table>")[0]
    names = {html.unescape(name) for name in re.findall(r'<tr><td><bdi title="([^"]*)">', table)}
    assert names == {"add", "carry", "negate", *STRANGE}
    assert text.count('aria-label="Heat map of the graph"') == 1 and "<h2>Graph of <bdi" in text
    assert f"skillshard mix {root / 'shards'} --ledger {root / 'one'} --first 0 --draws 600" in text


def test_the_page_loads_nothing(root: Path) -> None:
    text = page(report_facts([root / "one"]))
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text


def test_equal_facts_give_equal_pages_and_another_page_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    works("report", root / "one", "--out", out)
    before = out.read_bytes()
    works("report", root / "one", "--out", out)
    assert "exists and holds something else" in fails("report", root / "two", "--out", out)
    assert out.read_bytes() == before
    assert "is a directory: give --out a file" in fails("report", root / "one", "--out", tmp_path)


def test_resumes_alarms_and_changes_are_marks(root: Path, tmp_path: Path) -> None:
    shards = ShardSet.open(root / "shards")
    first = train(shards, tmp_path / "a", num_rounds=40, round_draws=100)
    at_3000 = first.state_at(3000).model_dump(by_alias=True)
    again = ss.Mixer(
        shards, first.policy, ledger=tmp_path / "a", round_draws=100, step_draws=10, lag="live", job="second"
    )
    with pytest.warns(UserWarning, match="left behind"):
        again.load_state_dict(first.state_at(3500).model_dump(by_alias=True))
    works("continue", tmp_path / "a", "--draw", 3000, "--out", tmp_path / "b")
    new = ss.Mixer(shards, policies.stratified(), ledger=tmp_path / "b", round_draws=50, step_draws=10, seed=4)
    new.load_state_dict(at_3000)
    new.batch(3000, 200)
    (run,) = report_facts([tmp_path / "a"]).runs
    resumes = [event for event in run.events if event.kind == "resume"]
    assert [(event.draw, event.sentence) for event in resumes] == [(3500, "resumed as generation 1 (job second)")]
    alarms = [event for event in run.events if event.kind == "alarm"]
    assert any("has passed 4." in event.sentence for event in alarms)
    assert {alarm.sentence.partition(" ")[0] for alarm in run.facts.alarms} <= {
        event.sentence.partition(" ")[0] for event in alarms
    }
    (chain,) = report_facts([tmp_path / "b"]).runs
    assert (chain.first_draw, chain.rounds[-1].end_draw, chain.num_rounds) == (0, 3200, 34)
    (change,) = [event for event in chain.events if event.kind == "change"]
    assert change.draw == 3000 and "-> 'stratified'; round_draws: 100 -> 50; seed: 0 -> 4" in change.sentence
    assert page(report_facts([tmp_path / "b"])).count('class="mark change"') == 3


def test_marks_at_the_same_place_do_not_cover_one_another(root: Path) -> None:
    """A change, two resumes and an alarm of the same draw, and an alarm of the next draw."""
    facts = report_facts([root / "one"])
    (run,) = facts.runs
    kinds = [(300, "change"), (300, "resume"), (300, "resume"), (300, "alarm"), (301, "alarm"), (500, "resume")]
    events = [Event(draw=draw, kind=kind, sentence=f"number {number}") for number, (draw, kind) in enumerate(kinds)]  # type: ignore[arg-type]
    text = page(ReportFacts(runs=[run.model_copy(update={"events": events})]))
    chart = text[text.index('<svg class="chart"') :].partition("</svg>")[0]
    marks = re.findall(
        r'<g><title>(.*?)</title><path class="mark (\w+)"(.*?) d="M([\d.]+) .*?<circle .*? cx="([\d.]+)" cy="([\d.]+)"',
        chart,
    )
    assert [kind for _, kind, *_ in marks] == ["change", "resume", "alarm", "alarm", "resume"]
    # One mark has the sentences of all events of its kind.
    assert marks[1][0] == "draw 300, resume: number 1&#10;draw 300, resume: number 2"
    circles = [(float(x), float(y)) for *_, x, y in marks]
    for number, (x, y) in enumerate(circles):
        assert all(abs(x - other_x) >= 10 or abs(y - other_y) >= 10 for other_x, other_y in circles[:number])
    # The dashes of the three kinds at draw 300 follow one another, and all other lines keep the style of their kind.
    dashes = [re.findall(r"-?\d+", style) for _, _, style, *_ in marks]
    assert dashes[:3] == [["6", "12", offset] for offset in ("0", "-6", "-12")] and dashes[3:] == [[], []]


def test_a_steering_is_a_mark_at_the_round_in_which_it_first_acts(root: Path, tmp_path: Path) -> None:
    mixer = train(ShardSet.open(root / "shards"), tmp_path / "run", num_rounds=4, round_draws=100)
    decided = mixer.num_rounds
    for number, (action, why) in enumerate((("freeze", "<b>a jump</b>"), ("resume", "calm"))):
        steer(tmp_path / "run", action, why=why)
        mixer.batch((decided + 2 * number) * 100, 200)
    (run,) = report_facts([tmp_path / "run"]).runs
    changes = [(event.draw, event.sentence) for event in run.events if event.kind == "change"]
    assert changes == [
        (decided * 100, "steering 0: freeze, because <b>a jump</b>"),
        ((decided + 2) * 100, "steering 1: resume, because calm"),
    ]
    assert "because &lt;b&gt;a jump&lt;/b&gt;" in page(report_facts([tmp_path / "run"]))


def test_a_long_history_is_thinned_and_the_page_says_so(root: Path, tmp_path: Path) -> None:
    mixer = ss.Mixer(ShardSet.open(root / "shards"), policies.stratified(), ledger=tmp_path / "run", round_draws=1)
    for number in range(POINTS + 50):
        mixer.round(number)
    facts = report_facts([tmp_path / "run"])
    (run,) = facts.runs
    assert len(run.rounds) == POINTS and (run.rounds[0].round, run.rounds[-1].round) == (0, POINTS + 49)
    assert f"({POINTS} of {POINTS + 50} rounds)" in page(facts) and "No losses were reported." in page(facts)


def grown(facts: ReportFacts, num_skills: int, num_rounds: int) -> ReportFacts:
    """Give a run other numbers of skills and of shown rounds, with long names and numbers of many digits."""
    (run,) = facts.runs
    values = [0.1234567890123 + number / 3 / num_rounds for number in range(num_rounds)]
    names = [f"a long name of a skill, as taggers by clusters give it, number {number}" for number in range(num_skills)]
    skill, loss, row, report = run.skills[0], run.losses[0], run.rounds[0], run.reports[0]
    courses = {"weights": values, "epochs": values, "intended": values, "achieved": values}
    larger = run.model_copy(
        update={
            "num_rounds": 2000,
            "rounds": [row.model_copy(update={"first_draw": 500 * number, "end_draw": 500 * (number + 1), "observed_to": 500 * number}) for number in range(num_rounds)],
            "reports": [report.model_copy(update={"draw": 500 * number, "step": 50 * number}) for number in range(num_rounds)],
            "skills": [skill.model_copy(update={"name": name, **courses}) for name in names],
            "losses": [loss.model_copy(update={"name": name, "losses": values}) for name in names],
        }
    )  # fmt: skip
    return facts.model_copy(update={"runs": [larger]})


def test_the_page_of_500_skills_and_2000_rounds_is_below_a_megabyte(root: Path) -> None:
    facts = grown(report_facts([root / "one"]), 500, POINTS)
    text = page_of(facts, num_lines=24)
    assert len(text.encode()) < 1_000_000 and "24 of 500 skills" in text and "(400 of 2,000 rounds)" in text
    assert text.count("<tr><td><bdi") >= 500


class _Tags(HTMLParser):
    """The tags of a page, with the names of their attributes, and the text of the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[str]]] = []
        self.data = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == ("script", ["type", "id"]):
            self.data += data


@given(name=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
@example(name=STRANGE[0])
@example(name=STRANGE[2])
def test_a_name_adds_no_tag_and_no_attribute_to_the_page(name: str) -> None:
    facts = ReportFacts.model_validate(SMALL)
    (run,) = facts.runs
    renamed = run.model_copy(update={"skills": [run.skills[0].model_copy(update={"name": name})]})
    shown, plain = _Tags(page(facts.model_copy(update={"runs": [renamed]}))), _Tags(page(facts))
    assert shown.tags == plain.tags
    (line,) = json.loads(shown.data.partition("\n")[0])[0]["lines"]
    assert line["name"] == shortened(name)


SMALL: dict[str, object] = {
    "schema": "skillshard/report/1",
    "runs": [
        {
            "facts": {
                "place": "runs/1", "skills": [], "losses": [], "shown_rounds": [0], "shown_reports": [], "round": 0, "num_draws": 10,
                "num_rounds": 1, "num_observations": 0, "last_report": None, "waits_for": None, "alarms": [], "steerings": [], "resumes": [],
                "generation": 0, "policy": "stratified", "unit": "samples", "seed": 0, "round_draws": 10, "lag": 1, "first_draw": 0, "earlier": [], "skipped": [],
            },
            "first_draw": 0, "num_rounds": 1, "num_reports": 0,
            "rounds": [{"round": 0, "first_draw": 0, "end_draw": 10, "new_reports": [], "observed_to": -1}],
            "skills": [{"name": "plain", "weights": [1.0], "epochs": [0.1], "intended": [1.0], "achieved": [1.0]}],
            "reports": [], "losses": [], "events": [], "settings": {}, "shards": None, "no_shards": "moved", "graph": None,
        }
    ],
}  # fmt: skip
"""The facts of a run with a single round."""


def test_each_fault_is_one_sentence(root: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "report.html")
    assert "holds no run: run.json is missing" in fails("report", tmp_path, *out)
    shards = ShardSet.open(root / "shards")
    ss.Mixer(shards, policies.stratified(), ledger=tmp_path / "new", round_draws=50)
    assert "has decided no round yet" in fails("report", tmp_path / "new", *out)
    SkillGraph.identity(shards.skills).save(tmp_path / "graph.json")
    sentence = fails("report", root / "one", "--graph", tmp_path / "graph.json", *out)
    assert "no policy of these runs uses the graph" in sentence
    shutil.copytree(root / "one", tmp_path / "damaged")
    record = tmp_path / "damaged" / "generations" / "00000000" / "rounds" / "00000004.json"
    record.write_bytes(record.read_bytes().replace(b'"round": 4', b'"round": 5'))
    assert "00000004.json" in fails("report", tmp_path / "damaged", *out)
    refused = skillshard("report", root / "one", "--format", "json", "--skills", 3, *out)
    assert refused.code == 2 and not (tmp_path / "report.html").exists()


def test_a_run_without_its_shards_says_why(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "shards", tmp_path / "shards")
    train(ShardSet.open(tmp_path / "shards"), tmp_path / "run")
    shutil.rmtree(tmp_path / "shards")
    (run,) = report_facts([tmp_path / "run"]).runs
    assert run.shards is None and run.no_shards is not None and "cannot be opened" in run.no_shards
    assert "The shards are not at hand" in page(report_facts([tmp_path / "run"]))


ACTIONS = """<script>
const section = document.querySelector("section.history"), chart = section.querySelector("svg.chart");
const texts = [section.querySelector(".round").textContent];
const press = (key) => { chart.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true})); texts.push(section.querySelector(".round").textContent); };
press("ArrowLeft"); press("Home");
const box = chart.getBoundingClientRect();
chart.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width * 0.5, clientY: box.top + 9, bubbles: true}));
texts.push(section.querySelector(".round").textContent);
texts.push(section.querySelector(".readout tbody tr").innerText);
document.querySelector("#skills th button[data-column='1']").click();
texts.push([...document.querySelector("#skills").tBodies[0].rows].map((row) => row.cells[1].textContent).join(" "));
const filter_ = document.getElementById("filter");
filter_.value = "CARR"; filter_.dispatchEvent(new Event("input"));
texts.push(document.getElementById("matches").textContent);
section.querySelector(".key button").click();
texts.push(String(section.querySelectorAll(".curve.dim").length));
document.title = JSON.stringify(texts);
</script>"""


def dumped(text: str, folder: Path, *, width: int, height: int = 2000) -> str:
    """Return the document of a page after its scripts in a browser, which must print no error."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed (on Debian: apt-get install chromium); other tests check the page's text")
    place = folder / "report.html"
    place.write_text(text)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    ended = subprocess.run(
        [*command, "--enable-logging=stderr", f"--window-size={width},{height}", "--dump-dom", place.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0 and "CONSOLE" not in ended.stderr, ended.stderr
    (title,) = re.findall(r"<title>([\[{].*?[\]}])</title>", ended.stdout, flags=re.S)
    return html.unescape(title)


def test_a_browser_shows_the_page_without_an_error_and_obeys_pointer_and_keys(root: Path, tmp_path: Path) -> None:
    facts = report_facts([root / "one", root / "three"], graphs=[root / "graph.json"])
    title = dumped(page(facts).replace("</body>", f"{ACTIONS}</body>"), tmp_path, width=1200)
    newest, before, first, middle, row, weights, matches, dimmed = json.loads(title)
    assert newest.startswith("Round 11, draws 550 to 599. The losses are those of step 55, draw 550")
    assert before.startswith("Round 10, ") and first.startswith("Round 0, draws 0 to 49. ")
    assert middle.startswith(("Round 5, ", "Round 6, "))
    weight = facts.runs[0].skills[0].weights[int(re.findall(r"\d+", middle)[0])]
    assert weight is not None and f"{weight:.4g}" in row.split()
    shown = [float(text) for text in weights.split() if text != "\N{EN DASH}"]
    assert shown == sorted(shown, reverse=True) and len(shown) == 3
    assert matches == "1 of 6 skills" and int(dimmed) > 0


PRINTED = """<script>
const style = (selector) => getComputedStyle(document.querySelector(selector));
document.querySelector(".key button").click();
document.title = JSON.stringify({
  key: style(".key").display, names: [...document.querySelectorAll(".key button")].map((button) => button.innerText),
  chosen: [style(".key button").backgroundColor, style(".key button").color, style("body").color],
  control: style(".control").display, tall: style(".tall").overflow,
  right: Math.max(...[...document.querySelectorAll("body *")].map((element) => element.getBoundingClientRect().right)),
  width: document.documentElement.clientWidth,
});
</script>"""
A4_PIXELS = 718
"""Width of a sheet of A4 without the margins of 1 cm, in pixels of 96 to the inch."""


def test_on_paper_the_lines_have_names_and_nothing_is_cut_or_needs_a_background(root: Path, tmp_path: Path) -> None:
    """The rules for paper hold in a window of the width of a sheet."""
    facts = report_facts([root / "one", root / "three"], graphs=[root / "graph.json"])
    names = [f"a skill with a long name, number {number}" for number in range(40)]
    edges = [[float(row == column) for column in range(40)] for row in range(40)]
    runs = [
        run.model_copy(
            update={"graph": run.graph.model_copy(update={"train_skills": names, "eval_skills": names, "edges": edges})}
        )
        if run.graph
        else run
        for run in facts.runs
    ]
    text = page(facts.model_copy(update={"runs": runs}))
    assert text.count("@media print") == 1 and "@media screen and (prefers-color-scheme: dark)" in text
    on_paper = text.replace("@media print", "@media all").replace("</body>", f"{PRINTED}</body>")
    shown = json.loads(dumped(on_paper, tmp_path, width=A4_PIXELS))
    assert shown["key"] == "flex" and {"add", "carry", "negate"} <= set(shown["names"])
    assert shown["chosen"][0] == "rgba(0, 0, 0, 0)" and shown["chosen"][1] == shown["chosen"][2]
    assert (shown["control"], shown["tall"]) == ("none", "visible")
    assert shown["right"] <= shown["width"]


LABELS = """<script>
const chart = document.querySelector("svg.chart"), size = (text) => parseFloat(getComputedStyle(text).fontSize);
const scale = chart.getBoundingClientRect().width / 640, picture = chart.getBoundingClientRect();
const labels = [...document.querySelectorAll("svg.chart text")];
document.title = JSON.stringify({
  pixels: Math.min(...labels.map((text) => size(text) * scale)),
  outside: labels.some((text) => text.getBoundingClientRect().left < picture.left - 1),
});
</script>"""


@pytest.mark.parametrize("width", [520, 1200])
def test_the_labels_of_a_chart_can_be_read_in_a_narrow_window_too(root: Path, tmp_path: Path, width: int) -> None:
    text = page(report_facts([root / "one"])).replace("</body>", f"{LABELS}</body>")
    # No window of Chromium is as narrow as a telephone, so the page is.
    narrow = text.replace("<body>", '<body style="max-width:400px">') if width == 520 else text
    shown = json.loads(dumped(narrow, tmp_path, width=width))
    assert shown["pixels"] >= 8 and not shown["outside"]


STACKED = """<script>
const rows = [...document.querySelectorAll("#skills tbody tr")];
const shown = (cells) => [...cells].filter((cell) => getComputedStyle(cell).display !== "none" && cell.getBoundingClientRect().width > 0);
const button = document.querySelector("#skills thead th:nth-child(3) button");
if (SORTS) button.click();
document.title = JSON.stringify({
  lines: [...document.querySelectorAll("#skills tbody tr")].map((row) => {
    const lines = {};
    for (const cell of shown(row.cells)) (lines[Math.round(cell.getBoundingClientRect().top)] ??= []).push(cell.innerText);
    return Object.values(lines);
  }),
  heads: shown(document.querySelectorAll("#skills thead th")).map((cell) => cell.innerText.replace(/\\s+/g, " ")),
  right: Math.max(...[...document.querySelectorAll("body *")].map((element) => element.getBoundingClientRect().right)),
  inside: rows.every((row) => shown(row.cells).every((cell) => cell.scrollWidth <= cell.clientWidth + 1)),
  width: document.documentElement.clientWidth,
});
</script>"""


def test_on_paper_the_columns_of_five_runs_stand_below_one_another_and_none_is_cut(root: Path, tmp_path: Path) -> None:
    facts = report_facts([root / "one", root / "two", root / "three"])
    one, two, three = facts.runs
    runs = [one, two, three, renamed(one, "a-run-with-a-rather-long-name"), renamed(two, "five")]
    names = ["one", "two", "three", "a-run-with-a-rather-long-name", "five"]
    text = page(facts.model_copy(update={"runs": runs}))
    script = STACKED.replace("SORTS", "false")
    on_paper = text.replace("@media print", "@media all").replace("</body>", f"{script}</body>")
    shown = json.loads(dumped(on_paper, tmp_path, width=A4_PIXELS))
    assert shown["right"] <= shown["width"] and shown["inside"]
    assert shown["heads"] == ["skill", "run", *COLUMNS]
    for skill, lines in zip(["add", "carry", "negate"], shown["lines"], strict=False):
        first, *others = lines
        assert first[0] == skill and [line[0] for line in others] == names[1:] and first[1] == names[0]
        # The name of the run, and its eight columns.
        assert [len(line) for line in (first[1:], *others)] == [9] * 5
        weights = [
            next(own for own in run.skills if own.name == skill).weights[-1]
            for run in runs
            if run is not three or skill == "add"
        ]
        assert [line[1] for line in (first[1:], *others) if line[1] != "\N{EN DASH}"] == [
            f"{own:.4g}" for own in weights
        ]


def test_on_a_screen_five_runs_stand_side_by_side_and_sort_by_their_own_columns(root: Path, tmp_path: Path) -> None:
    facts = report_facts([root / "one", root / "two", root / "three"])
    text = page(facts).replace("</body>", f"{STACKED.replace('SORTS', 'true')}</body>")
    shown = json.loads(dumped(text, tmp_path, width=1500))
    assert "run" not in shown["heads"] and shown["heads"].count("weight now") == 3
    assert all(len(lines) == 1 and len(lines[0]) == 1 + 3 * 8 for lines in shown["lines"])
    weights = [float(lines[0][1]) for lines in shown["lines"] if lines[0][1] != "\N{EN DASH}"]
    assert weights == sorted(weights, reverse=True) and len(weights) == 3


def renamed(run: RunHistory, name: str) -> RunHistory:
    return run.model_copy(update={"facts": run.facts.model_copy(update={"place": f"/runs/{name}"})})
