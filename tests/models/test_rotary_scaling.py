"""What scaling does to rotations; the frequencies are compared in test_transformer_oracles.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.models.positions import RotaryPositions, Sizes
from ablax.models.rotary_scaling import LinearScaling, Llama3Scaling, YarnScaling

BASE, WIDTH = 1e4, 32
FREQUENCIES = jnp.asarray(BASE ** (-np.arange(0, WIDTH, 2) / WIDTH), jnp.float32)


def test_rotation_is_of_the_scaled_frequencies():
    """Catches: a scaling that is built and not used, or whose factor is left out."""
    config = YarnScaling(factor=4.0, original_length=512)
    module = RotaryPositions(base=BASE, scaling=config).build(Sizes(64, 2, WIDTH, 16, True))
    cosine, sine = module.apply({}, jnp.asarray([[0, 7]], jnp.int32), method="rotation")
    frequencies, factor = config.build(FREQUENCIES, BASE)
    np.testing.assert_allclose(cosine[0, 1], factor * np.cos(7 * frequencies), atol=1e-6)
    np.testing.assert_allclose(sine[0, 1], factor * np.sin(7 * frequencies), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling(factor=0.0), "scaling.factor=0.0"),
        (lambda: Llama3Scaling(high_frequency_factor=1.0), "high_frequency_factor=1.0"),
        (lambda: YarnScaling(beta_fast=0.5), "beta_fast=0.5"),
        (lambda: YarnScaling(attention_factor=-1.0), "attention_factor=-1.0"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(RequestError, match=message):
        make()
