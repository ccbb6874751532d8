"""The README's examples run as they are written.

A block after `<!-- test -->` is run, in a folder of its own; one after `<!-- file: NAME -->` is written there first.
"""

import re
import shlex
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^<!-- (test|file: (?P<file>[\w.]+)) -->\n```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
BLOCKS = [found.groupdict() for found in BLOCK.finditer(README.read_text())]


def test_every_marked_block_is_recognised():
    marks = re.findall(r"^<!-- (?:test|file: .*) -->$", README.read_text(), re.M)
    assert len(BLOCKS) == len(marks)
    kinds = {(block["language"], block["file"] is not None) for block in BLOCKS}
    assert kinds >= {("python", False), ("python", True), ("sh", False)}


def test_the_examples_run_as_written(nas_command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        if block["file"]:
            Path(block["file"]).write_text(block["text"])
        elif block["language"] == "python":
            exec(compile(block["text"], README.name, "exec"), {"__name__": "readme"})
        else:
            assert block["language"] == "sh"
            for line in block["text"].splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "nas"
                outcome = nas_command(*arguments)
                assert outcome.code == 0, outcome.err
