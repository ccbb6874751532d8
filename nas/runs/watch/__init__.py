"""The collapse watch: signals that a search converges to something worthless, and what is then done."""

from nas.runs.watch.settings import Watch as Watch
