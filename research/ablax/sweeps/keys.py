"""The words in a plan's overrides that are no knobs."""

ARM, SEED, REPEAT = "arm", "seed", "repeat"
MATCH = "match"
"""Budgets in which an arm is made equal to another, each by a knob that is solved (see `match`)."""
SCALE = "scale"
"""The arm and the size that an arm of a plan over sizes is, and how long it trains for them (see `scale`)."""
TRIAL, WINNER = "trial", "winner"
"""A trial of an arm that is tuned, and its best trial's run with another seed (see `tuned`)."""
TRUNK, BRANCH = "trunk", "branch"
"""A run that others go on from, and one that does (see `branch`)."""
LINKS = (TRIAL, WINNER, TRUNK, BRANCH)
"""Words that tie a cell to others of the plan."""
BESIDE = (TRIAL, TRUNK)
"""Those of cells that run for the sake of others, and are no arms that are compared."""
