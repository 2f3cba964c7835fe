"""Generation by several devices is that by one."""

from parallel.faked import printed


def test_devices_share_what_is_generated():
    """Catches: a program that is traced without the mesh, so that each device decodes all rows; parameters that stay
    whole; rows that mix in a search."""
    found = printed("parallel.compare_generation", devices=8)
    assert found["same"]
    assert found["off"] < 1e-4  # float32 nats of logits of tens, added in another order
    assert (
        max(found["shares"]) < 0.25
    )  # an eighth each, and what is not split; 0.39 without the mesh
    assert found["parts"] == 4
