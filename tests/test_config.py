"""Configuration: dataclasses to ConfigDict and back, overrides, unions, durations, marks."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablax import config as c
from ablax.config import Duration, RequestError, family, knob


@dataclasses.dataclass(frozen=True)
class Inner:
    """A group."""

    size: int = knob(3, "size")
    share: float = knob(0.5, "share", traced=True)
    limit: int | None = knob(None, "limit")


@dataclasses.dataclass(frozen=True)
class Square:
    """One kind."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"big": {"side": 9, "inner.size": 7}}
    side: int = knob(1, "side")
    inner: Inner = knob(Inner(), "group")

    def __post_init__(self):
        if self.side < 0:
            raise RequestError(f"side={self.side} must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Circle:
    """Another kind."""

    ARGUMENT: ClassVar[str] = "name"
    name: str = knob("unit", "name")
    radius: float = knob(1.0, "radius", traced=True)


SHAPES = {"square": Square, "circle": Circle}


@dataclasses.dataclass(frozen=True)
class Root:
    """The whole."""

    shape: Any = family(SHAPES, "square", "a shape")
    steps: Duration = knob(Duration(10), "length")
    mode: Literal["fast", "slow"] = knob("fast", "mode", mark="execution")
    widths: tuple[int, ...] = knob((1, 2), "widths")
    shares: tuple[float, ...] = knob((0.5,), "shares")
    limit: float | None = knob(None, "limit")
    on: bool = knob(True, "switch", mark="cosmetic")


@dataclasses.dataclass(frozen=True)
class Mine:
    """A class of a user's."""

    depth: int = knob(2, "depth")

    def build(self):
        """Nothing."""


def changed(**overrides):
    paths = {key.replace("__", "."): value for key, value in overrides.items()}
    return c.from_dict(Root, c.override(Root, c.to_config_dict(Root()), paths))


def test_round_trip():
    tree = dataclasses.replace(
        Root(), shape=Circle("a", 2.5), steps=Duration("3 epochs"), widths=(4,)
    )
    assert c.from_dict(Root, c.to_config_dict(tree)) == tree


def test_config_dict_is_locked():
    with pytest.raises((KeyError, AttributeError)):
        c.to_config_dict(Root()).nothing = 1


def test_kinds_come_first_whatever_their_order():
    """Catches overrides applied in the order of the command line."""
    for order in (
        {"shape__side": "4", "shape__kind": "square:big"},
        {"shape": "square:big", "shape__side": "4"},
    ):
        shape = changed(**order).shape
        assert (shape.side, shape.inner.size) == (4, 7)


def test_kind_replaces_the_subtree():
    assert changed(shape__kind="circle:wheel").shape == Circle("wheel")
    with pytest.raises(RequestError, match=r"unknown knob 'shape.side' \(kind 'circle'\)"):
        changed(shape__kind="circle", shape__side="3")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"shape__inner__limit": "none"}, lambda r: r.shape.inner.limit is None),
        ({"shape__inner__limit": "5"}, lambda r: r.shape.inner.limit == 5),
        ({"shape__inner__share": "1e-2"}, lambda r: r.shape.inner.share == 0.01),
        ({"shape__side": "2e3"}, lambda r: r.shape.side == 2000),
        ({"widths": "3"}, lambda r: r.widths == (3,)),
        ({"widths": "(3, 4)"}, lambda r: r.widths == (3, 4)),
        ({"widths": ""}, lambda r: r.widths == ()),
        ({"on": "false"}, lambda r: r.on is False),
        ({"mode": "slow"}, lambda r: r.mode == "slow"),
        ({"steps": "5%"}, lambda r: r.steps == Duration("5%")),
    ],
)
def test_texts_are_converted_by_annotation(overrides, expected):
    assert expected(changed(**overrides))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"shape__sides": "3"}, "unknown knob 'shape.sides'.*did you mean 'side'"),
        ({"shap": "3"}, "did you mean 'shape'"),
        ({"shape__kind": "squar"}, "did you mean 'square'"),
        ({"shape__kind": "square:huge"}, "no preset 'huge'; there are: big"),
        ({"shape__side": "x"}, "shape.side='x' must be a whole number"),
        ({"shape__side": "1.5"}, "must be a whole number"),
        ({"shape__side": "-1"}, "shape: side=-1 must be 0 or more"),
        ({"shape__side": "true"}, "must be a whole number"),
        ({"shape__inner": "3"}, "group of knobs"),
        ({"shape__side__x": "3"}, "has no field 'x'"),
        ({"mode": "medium"}, "one of fast, slow"),
        ({"on": "maybe"}, "true or false"),
        ({"steps": "5 lightyears"}, "duration"),
        ({"shape__inner__share": "nan"}, "shape.inner.share='nan' must be a finite number"),
        ({"shape__inner__share": float("-inf")}, "shape.inner.share=-inf must be a finite number"),
        ({"shape__inner__share": "1e999"}, "shape.inner.share='1e999' must be a finite number"),
        ({"shares": "0.5,inf"}, "shares='0.5,inf' must be a tuple of a finite number"),
        ({"limit": "nan"}, "limit='nan' must be a finite number or none"),
        ({"widths": "a,b"}, "tuple of a whole number"),
        ({"shape__kind": "nosuchmodule:Thing"}, "No module named"),
        ({"shape__kind": "ablax.config:Nothing"}, "no attribute 'Nothing'"),
        ({"shape__kind": "ablax.config:knob"}, "not a dataclass"),
    ],
)
def test_mistakes_are_one_line(overrides, words):
    with pytest.raises(RequestError, match=words) as caught:
        changed(**overrides)
    assert "\n" not in str(caught.value)


def test_classes_from_outside():
    values = c.override(
        Root, c.to_config_dict(Root()), {"shape.kind": Mine, "shape.depth": "5"}, extend=[Mine]
    )
    tree = c.from_dict(Root, values, extend=[Mine])
    assert tree.shape == Mine(5)
    assert values["shape"]["kind"] == f"{__name__}:Mine"
    # Loading must not import what nobody named.
    with pytest.raises(RequestError, match="name it to allow it"):
        c.from_dict(Root, values, imports=False)
    assert c.from_dict(Root, values, extend=[Mine], imports=False) == tree
    assert "class Mine" in c.extension_sources(tree)[f"{__name__}:Mine"]


def test_split_overrides():
    rest, overrides = c.split_overrides(
        ["train", "--config=f.py", "--config.a.b=1", "--config.c", "x=y", "--workdir=w"]
    )
    assert rest == ["train", "--config=f.py", "--workdir=w"]
    assert overrides == {"a.b": "1", "c": "x=y"}
    with pytest.raises(RequestError, match="has no value"):
        c.split_overrides(["--config.a", "--workdir=w"])
    with pytest.raises(RequestError, match="given twice"):
        c.split_overrides(["--config.a=1", "--config.a=2"])


def test_fingerprint_covers_results_only():
    """Catches an execution or cosmetic knob that makes a resume impossible, and a result knob that does not count."""
    reference = c.fingerprint(Root())
    assert c.fingerprint(changed(mode="slow")) == reference
    assert c.fingerprint(changed(on="false")) == reference
    for overrides in (
        {"steps": "11"},
        {"shape__side": "2"},
        {"shape__kind": "circle"},
        {"shape__inner__share": "0.1"},
    ):
        assert c.fingerprint(changed(**overrides)) != reference


def test_differences():
    assert c.differences(Root(), changed(shape__side="2", mode="slow"), "result") == {
        "shape.side": (1, 2)
    }
    assert c.differences(Root(), changed(mode="slow")) == {"mode": ("fast", "slow")}


def test_traced_and_static():
    """Catches a traced value that stays in the program as a constant."""
    tree = changed(shape__inner__share="0.25")
    assert c.traced(tree) == {"shape": {"inner": {"share": 0.25}}}
    assert math.isnan(c.static(tree).shape.inner.share)
    assert c.static(changed(shape__inner__share="0")).shape.inner.share == 0


@given(st.integers(1, 10**9), st.sampled_from(["", " steps", " epochs", " tokens", "%"]))
def test_durations_round_trip(amount, unit):
    duration = Duration(f"{amount}{unit}")
    assert Duration(str(duration)) == duration
    assert c.coerce(Duration, str(duration), "x") == duration


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (7, 7),
        ("7", 7),
        ("3 epochs", 36),
        ("0.5 epochs", 6),
        ("1e3 tokens", 10),
        ("1001 tokens", 11),
        ("5%", 10),
    ],
)
def test_durations_in_steps(text, steps):
    """Catches rounding down, which would end a run before its tokens are read."""
    assert Duration(text).steps(200, 100, 12.0) == steps


def test_durations_that_need_more():
    with pytest.raises(RequestError, match="cannot be turned into steps"):
        Duration("3 epochs").steps(100)
    for bad in ("", "-3", "3.5", "5 %%", "epochs", True):
        with pytest.raises(RequestError):
            Duration(bad)
