"""Print the facts of `skillshard peek` in the terminal."""

from collections import Counter
from collections.abc import Callable

from skillshard.corpus.formats import SUFFIXES
from skillshard.corpus.peek import FILE_BYTES, FILE_ROWS, PeekFacts, PeekProblem
from skillshard.corpus.sample import unit_of
from skillshard.corpus.selection import describe_left_out
from skillshard.errors import name_some
from skillshard.printable import counted, size_in_words
from skillshard.report.text import print_line, print_table

_SHOWN_PROBLEMS = 20
_SHOWN_FIELDS = 60  # a JSON object may have a field for each of thousands of rows


def show_peek(facts: PeekFacts, translated: Callable[[str], str]) -> None:
    """Print files, fields, bad rows and the next command.

    Args:
        facts: Facts of the corpus.
        translated: Function that turns the arguments in a sentence into options of the command line.
    """
    suffixes = ", ".join(f"{suffix} {number:,}" for suffix, number in facts.suffixes.items())
    print_line(f"{counted(facts.num_files, 'file')}, {size_in_words(facts.num_bytes)}: {suffixes}")
    if facts.left_out:
        print_line(f"left out: {describe_left_out(facts.left_out)}")
        num_texts = sum(number for kind, number in facts.left_out.items() if SUFFIXES.get(kind) == "text")
        if num_texts > facts.num_files:
            print_line(
                translated(
                    f"{counted(num_texts, 'file')} of text or code left out: `text_files='whole'` reads each of these files as a sample"
                )
            )
    print_line(
        f"read: {counted(facts.num_rows, 'row')} from the beginning of {counted(len(facts.read), 'file')} ({name_some(facts.read, 8)}); "
        f"at most {FILE_ROWS:,} rows and {FILE_BYTES >> 20} MiB of a file"
    )
    rows = [
        (field.path, " or ".join(field.types[:2]), f"{field.num_rows:,}", f"{field.num_values:,}", field.example)
        for field in facts.fields[:_SHOWN_FIELDS]
    ]
    if rows:
        print_table(("field", "type", "rows", "values", "example"), rows)
    if len(facts.fields) > _SHOWN_FIELDS:
        print_line(f"and {len(facts.fields) - _SHOWN_FIELDS:,} other fields")
    for name, choice in (("id", facts.id), ("text", facts.text), ("skill", facts.skill)):
        print_line(f"{name}: {choice}")
    if facts.num_problems:
        _show_problems(facts, translated)
    print_line("")
    print_line(facts.command)


def _show_problems(facts: PeekFacts, translated: Callable[[str], str]) -> None:
    reasons = Counter(problem.reason for problem in facts.problems)
    counts = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common())
    print_line("")
    first = f"the first {len(facts.problems):,}: " if len(facts.problems) < facts.num_problems else ""
    print_line(f"bad rows: {facts.num_problems:,} ({first}{counts})")
    # A field that often lacks would otherwise fill the page with one sentence.
    alike: dict[tuple[str, str], list[PeekProblem]] = {}
    for problem in facts.problems:
        alike.setdefault((problem.file, problem.detail), []).append(problem)
    shown = list(alike.values())[:_SHOWN_PROBLEMS]
    for first_problem, *others in shown:
        name, line = first_problem.file, first_problem.line
        where = name if line is None else f"{name} {unit_of(name)} {line}"
        more = f" (and {counted(len(others), 'other row')} of the file)" if others else ""
        print_line(f"  {where}: {translated(first_problem.detail)}{more}")
    if num_others := facts.num_problems - sum(map(len, shown)):
        print_line(f"  and {counted(num_others, 'other bad row')}")
