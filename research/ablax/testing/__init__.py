"""The laws that every model obeys, run on a config class of your own: `check_model`, `check_attention`.

They compile a tiny model a few times, which takes seconds. Each failure names the law, what was seen and what to do.
"""

from ablax.testing.attention import check_attention as check_attention
from ablax.testing.laws import check_model as check_model
