"""From a finished supernet to a genotype: the rules, and what a genotype is to a supernet.

`argmax` and `darts` read the probabilities; `sampled` and `evolution` compare genotypes with inherited weights; `beam`,
`perturbation` and `discretisation-loss` decide edge by edge in the supernet, from which candidates are taken away.
"""

from nas.derivation.base import Derivation, Judge, Masks, Quality
from nas.derivation.genotypes import derivable, discretise, sample, strongest, uniform
from nas.derivation.learned import Argmax, Darts
from nas.derivation.sampled import Sampled

__all__ = [
    "Argmax",
    "Darts",
    "Derivation",
    "Judge",
    "Masks",
    "Quality",
    "Sampled",
    "derivable",
    "discretise",
    "sample",
    "strongest",
    "uniform",
]
