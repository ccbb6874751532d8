"""Modifiers of a search: changes of its supernet and of its steps, chosen by name in `search.modifiers`."""

from nas.runs.modifiers.base import Attached as Attached
from nas.runs.modifiers.base import Modifier as Modifier
from nas.runs.modifiers.base import Searching as Searching
