"""The words in a plan's overrides that are no knobs."""

ARM, SEED, REPEAT = "arm", "seed", "repeat"
MATCH = "match"
"""Budgets in which an arm is made equal to another, each by a knob that is solved (see `match`)."""
SIZE, RATIO = "size", "tokens_per_parameter"
"""Of a plan over sizes: the size's name, and how many tokens an arm reads per parameter (see `scale`)."""
