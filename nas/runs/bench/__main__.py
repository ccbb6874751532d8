"""A process of its own for the memory of a step: reads what to measure from stdin as JSON, and prints the peaks."""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from nas.config import build, from_mapping
from nas.runs.bench.memory import peaks
from nas.runs.configuration import Config
from nas.runs.session import session
from nas.space import Genotype


def main() -> None:
    """Measures what stdin says."""
    given = json.load(sys.stdin)
    config = build(Config, [from_mapping(given["config"], "nas bench")])
    genotype = Genotype.from_json(given["genotype"]) if given["genotype"] else None
    with TemporaryDirectory() as folder, session(Path(folder), config, "bench", quiet=True) as work:
        found, reason = peaks(work, genotype)
    print(json.dumps({"peaks": found, "reason": reason}))


if __name__ == "__main__":
    main()
