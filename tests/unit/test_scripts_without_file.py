"""A script that Python reads from its standard input, as a here-document of a shell, may use several workers."""

import subprocess
import sys
from pathlib import Path

from skillshard.tags import Tags
from tests.conftest import samples, write_corpus

SCRIPT = """
import __main__
import skillshard as ss

corpus = ss.Corpus.open({corpus!r})
ss.tag_corpus(corpus, ss.taggers.metadata("skill"), {out!r}, backend=ss.Backend(workers=2), partition_bytes=500, progress=False)
print(__main__.__file__)
"""


def test_a_script_from_the_standard_input_uses_workers(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", samples(add=20, carry=20))
    script = SCRIPT.format(corpus=str(corpus), out=str(tmp_path / "tags"))
    run = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "<stdin>\n"  # the name is hidden for the start of a worker alone
    assert Tags.open(tmp_path / "tags").manifest.num_tagged == 40
