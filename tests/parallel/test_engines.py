"""The same step on one device, over meshes of eight and replicated by pmap."""

import numpy as np
import pytest

from parallel.faked import printed

FAMILIES = ("decoder", "encoder", "lstm")


def compare(family: str, steps: int, layers: int = 1):
    """Losses over all layouts."""
    return printed("parallel.compare_engines", family, str(steps), f"--layers={layers}", devices=8)


@pytest.fixture(scope="module", params=FAMILIES)
def results(request):
    return compare(request.param, 5)


def test_mesh_is_pmap_is_one_device(results):
    """Catches a mean over devices instead of a sum of totals over a sum of counts, a gradient that is not added, a
    carry that is not split by rows, and initial values that depend on the mesh."""
    losses = {name: found["losses"] for name, found in results.items() if "dropout" not in name}
    assert len(losses) >= 7
    for name, found in losses.items():
        # Only the order of float32 additions differs: losses were seen to differ by 4e-7, 4 units in the last place.
        np.testing.assert_allclose(found, losses["one"], rtol=2e-6, err_msg=name)
    # Parameters by 6e-6, and a bias of keys by 7e-6: it has no true gradient, and Adam divides its rounding error by
    # 1e-8. A hundredth of one step (rate 1e-2) leaves room for other processors, not for another gradient.
    assert max(found.get("parameters", 0) for found in results.values()) < 1e-4


def test_a_run_goes_on_over_any_other_layout(results):
    """Through a checkpoint after each step. Catches a layout that a checkpoint remembers, and a carry or an optimizer
    state that is restored onto one device."""
    np.testing.assert_allclose(results["travelled"]["losses"], results["one"]["losses"], rtol=2e-6)


def test_dropout_does_not_depend_on_the_mesh(results):
    """A mesh draws the masks that one device draws; pmap draws a replica's own."""
    found = [run["losses"] for name, run in results.items() if name.startswith("dropout")]
    if not found:
        pytest.skip("shown for the decoder: the others drop by the same function")
    np.testing.assert_allclose(*found, rtol=2e-6)
    assert found[0] != results["one"]["losses"]


@pytest.mark.parametrize("family", ["decoder", "lstm", "experts"])
def test_devices_share_an_evaluation(family):
    """Catches: every device scores all rows; scores of which a process has a part only; a token that finds none but
    its device's experts."""
    found = printed("parallel.compare_scores", family, devices=8)
    # float32 nats near 4, added in another order.
    assert max(run["off"] for run in found.values()) < 1e-5
    # An eighth each, and what is not split.
    assert max(run["share"] for name, run in found.items() if name != "one") < 0.3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", FAMILIES)
def test_hundred_steps(family):
    results = compare(family, 100, layers=2)
    for name, found in results.items():
        if "dropout" not in name:
            # Rounding errors grow with the steps.
            np.testing.assert_allclose(
                found["losses"], results["one"]["losses"], rtol=1e-4, err_msg=name
            )
