"""Configuration: frozen dataclasses <-> one locked ConfigDict, overrides, tagged unions, durations, fingerprint.

A knob is declared once, as a documented field of a frozen dataclass beside the code that reads it. Nothing here knows
about language models or imports JAX.
"""

from ablax.config.coerce import coerce as coerce
from ablax.config.coerce import describe as describe
from ablax.config.convert import from_dict as from_dict
from ablax.config.convert import json_copy as json_copy
from ablax.config.convert import to_config_dict as to_config_dict
from ablax.config.convert import to_dict as to_dict
from ablax.config.duration import Duration as Duration
from ablax.config.knobs import KIND as KIND
from ablax.config.knobs import Family as Family
from ablax.config.knobs import Mark as Mark
from ablax.config.knobs import RequestError as RequestError
from ablax.config.knobs import check_seed as check_seed
from ablax.config.knobs import choose as choose
from ablax.config.knobs import class_of as class_of
from ablax.config.knobs import cross_check as cross_check
from ablax.config.knobs import family as family
from ablax.config.knobs import hints as hints
from ablax.config.knobs import import_class as import_class
from ablax.config.knobs import kind_of as kind_of
from ablax.config.knobs import knob as knob
from ablax.config.knobs import suggest as suggest
from ablax.config.knobs import tag_of as tag_of
from ablax.config.marks import dataclasses_in as dataclasses_in
from ablax.config.marks import differences as differences
from ablax.config.marks import digest as digest
from ablax.config.marks import extension_sources as extension_sources
from ablax.config.marks import fingerprint as fingerprint
from ablax.config.marks import flatten as flatten
from ablax.config.marks import static as static
from ablax.config.marks import traced as traced
from ablax.config.marks import walk as walk
from ablax.config.overrides import override as override
from ablax.config.overrides import split_overrides as split_overrides
