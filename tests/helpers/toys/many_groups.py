"""A plugin of training processes: groups of parameters with 8-bit moments are split as those of a network of billions are."""

from components.training import engine

engine.LARGEST_8BIT_GROUP = 20_000
