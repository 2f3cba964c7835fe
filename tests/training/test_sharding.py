"""The table of sharding rules: what it covers, what follows a parameter, what it refuses."""

import jax
import pytest
from jax.sharding import PartitionSpec

from ablax.config import RequestError
from ablax.experiment import base, resolve
from ablax.training import session
from ablax.training.manifest import leaves_of
from ablax.training.parallel import ParallelConfig
from ablax.training.sharding import AXES, RULES, partition, partitions, shard_bytes

SIZES = {"data": 2, "fsdp": 2, "expert": 1, "sequence": 1, "tensor": 2}
MODELS = {
    "gpt": ({"model": "decoder:tiny"}, {}),
    "t5": (
        {"model": "decoder:tiny"},
        {
            "model.activation": "swiglu",
            "model.positions.kind": "t5",
            "model.query_key_norm": True,
            "model.norm": "rmsnorm",
            "model.tied_embeddings": False,
            "training.ema_decay": 0.9,
        },
    ),
    "experts": (
        {"model": "decoder:tiny"},
        {"model.feedforward.kind": "experts", "model.feedforward.capacity_factor": 1.0},
    ),
    "bert": ({"model": "encoder:tiny", "objective": "masked"}, {"model.num_token_types": 2}),
    "lstm": (
        {"model": "lstm:tiny"},
        {"model.layer_norm": True, "data.layout": "streams", "model.tied_embeddings": False},
    ),
}


def state_of(name, **others):
    kinds, knobs = MODELS[name]
    experiment = resolve(base(**kinds), {"schedule.warmup": 1, **knobs, **others})
    program = session.build_program(experiment, 300, session.Clock(5, 100, 1.0))
    return session.abstract_state(program, experiment)


@pytest.mark.parametrize("name", MODELS)
def test_matrices_are_split_and_what_follows_them_is_too(name):
    """Catches a parameter that no rule covers, and moments or averages that stay whole."""
    state, sizes = state_of(name), {**SIZES, "expert": 2 if name == "experts" else 1}
    specs = partitions(state, sizes)
    params = leaves_of(state.params)
    for path, leaf in params.items():
        spec = partition(path, leaf.shape, sizes)
        matrix = path.endswith(("kernel", "embedding")) or "kernel_" in path
        assert ("fsdp" in spec) == matrix, path
        for tree in (specs.params, specs.opt_state, specs.ema):
            followers = {
                key: value
                for key, value in jax.tree_util.tree_leaves_with_path(
                    tree, is_leaf=lambda x: isinstance(x, PartitionSpec)
                )
                if jax.tree_util.keystr(key, simple=True, separator="/").endswith(path)
            }
            assert set(followers.values()) <= {spec}
            if tree is specs.opt_state:
                assert len(followers) >= 2, "both moments"
    assert set(jax.tree.leaves(specs.carry)) <= {PartitionSpec(("data", "fsdp", "expert"))}
    total = sum(leaf.size * 4 for leaf in params.values())
    own = sum(
        shard_bytes(leaf, partition(path, leaf.shape, sizes), sizes)
        for path, leaf in params.items()
    )
    assert own < 0.6 * total


def test_heads_widths_and_vocabulary_are_split_by_tensor():
    specs = {
        path: partition(path, leaf.shape, SIZES)
        for path, leaf in leaves_of(state_of("gpt").params).items()
    }
    assert specs["blocks/attention/query/kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert specs["blocks/attention/out/kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert specs["blocks/mlp/out/kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert specs["tokens/embedding"] == PartitionSpec("tensor", "fsdp")
    assert specs["blocks/attention_norm/scale"] == PartitionSpec()


def test_experts_lie_on_devices_of_their_own():
    leaves = leaves_of(state_of("experts").params)
    sizes = {**SIZES, "expert": 2}
    specs = {path: partition(path, leaf.shape, sizes) for path, leaf in leaves.items()}
    assert specs["blocks/experts/in/kernel"] == PartitionSpec(None, "expert", "fsdp", "tensor")
    assert specs["blocks/experts/out/kernel"] == PartitionSpec(None, "expert", "tensor", "fsdp")
    assert specs["blocks/experts/router/kernel"] == PartitionSpec(None, "fsdp", None)
    with pytest.raises(RequestError, match=r"parallel\.expert=2 divides no parameter"):
        partitions(state_of("gpt"), {"expert": 2})


def test_a_dimension_that_does_not_divide_stays_whole():
    sizes = {"fsdp": 8, "tensor": 2}
    assert partition("tokens/embedding", (50257, 768), sizes) == PartitionSpec(None, "fsdp")
    with pytest.raises(RequestError, match=r"parallel\.fsdp=7 divides no parameter"):
        partitions(state_of("gpt"), {"fsdp": 7})


def test_an_uncovered_parameter_is_refused_where_it_matters():
    """One that only data parallelism replicates needs no rule."""
    assert partition("mine/weird", (4, 4), {"data": 8}) == PartitionSpec()
    with pytest.raises(
        RequestError, match=r"mine/weird \[4, 4\].*parallel\.rules='mine/weird=-,-'"
    ):
        partition("mine/weird", (4, 4), {"fsdp": 2})
    rules = ParallelConfig(fsdp=2, rules=("mine/.*=fsdp,-",)).table
    assert partition("mine/weird", (4, 4), {"fsdp": 2}, rules) == PartitionSpec("fsdp", None)
    assert len(rules) == len(RULES) + 1
    with pytest.raises(RequestError, match="has 3 dimensions and mine/weird has 2"):
        partition(
            "mine/weird", (4, 4), {"fsdp": 2}, [("mine/.*", PartitionSpec(None, None, "fsdp"))]
        )


def test_a_rule_that_matches_nothing_is_refused():
    """Catches: a misspelt path, whose parameter the built-in rules would go on to split."""
    rules = ParallelConfig(fsdp=2, rules=("blokcs/.*=-,fsdp",)).table
    with pytest.raises(RequestError, match=r"'blokcs/\.\*', which matches no parameter"):
        partitions(state_of("gpt"), SIZES, rules)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"fsdp": 0}, "fsdp=0 must be positive"),
        ({"fsdp": -1}, "data and fsdp are all -1"),
        ({"engine": "pmap", "fsdp": 2}, "engine=pmap replicates"),
        ({"rules": ("kernel",)}, "write REGEX=AXIS,AXIS"),
        ({"rules": ("kernel=rows",)}, "write REGEX=AXIS,AXIS"),
        ({"rules": ("(=fsdp",)}, r"unterminated|missing \)"),
        ({"rules": ("kernel=data",)}, "one of fsdp, expert, tensor, once each"),
        ({"rules": ("kernel=fsdp,fsdp",)}, "once each"),
        ({"engine": "pmap", "rules": ("kernel=fsdp",)}, "pmap splits no parameter"),
    ],
)
def test_layouts_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(RequestError, match=message):
        ParallelConfig(**knobs)


def test_one_axis_takes_the_devices_that_are_left():
    config = ParallelConfig(fsdp=2, tensor=2)
    assert config.over(8) == {"data": 2, "fsdp": 2, "expert": 1, "sequence": 1, "tensor": 2}
    assert ParallelConfig(data=2, fsdp=-1).over(8)["fsdp"] == 4
    with pytest.raises(RequestError, match="does not divide the 6 devices"):
        config.over(6)
    with pytest.raises(RequestError, match=r"fsdp=2 x tensor=2 but this machine has 2"):
        config.over(2)


@pytest.mark.parametrize(
    ("name", "knobs", "sizes", "message"),
    [
        (
            "gpt",
            {"training.batch_size": 6},
            {"data": 4},
            "over 4 devices; .* or set parallel.data=3",
        ),
        (
            "gpt",
            {"training.batch_size": 7},
            {"fsdp": 2},
            "over 2 devices; make it a multiple of 2$",
        ),
        (
            "gpt",
            {"training.batch_size": 12, "training.accumulation": 3},
            {"data": 8},
            r"8 devices x training\.accumulation=3; make it a multiple of 24, or set parallel.data=4",
        ),
        (
            "gpt",
            {"data.sequence_length": 66},
            {"sequence": 4},
            "does not divide data.sequence_length=66",
        ),
        ("gpt", {"model.num_heads": 2}, {"tensor": 4}, "does not divide model.num_heads=2"),
        (
            "experts",
            {"training.batch_size": 33},
            {"expert": 3},
            "does not divide model.feedforward.num_experts=8",
        ),
        ("experts", {"model.feedforward.capacity_factor": None}, {"expert": 2}, "set model.*=1.25"),
        ("lstm", {}, {"sequence": 2}, "a recurrent model reads one after"),
    ],
)
def test_what_does_not_divide_is_refused(name, knobs, sizes, message):
    kinds, own = MODELS[name]
    experiment = resolve(base(**kinds), {"schedule.warmup": 1, **own, **knobs})
    with pytest.raises(RequestError, match=message):
        session.check_layout(experiment, {**dict.fromkeys(AXES, 1), **sizes})
