"""Points of an experiment that take milliseconds."""

from dataclasses import replace

from advdim.experiments.spec import AtInitialisation, Images
from advdim.models import Network

TINY = AtInitialisation(Images("digits", 8, "copy", 4), Network("mlp", width=8), seeds=2)
THREE = [TINY, replace(TINY, network=Network("mlp", width=9)), replace(TINY, network=Network("mlp", width=10))]
