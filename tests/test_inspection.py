"""What inspect says: exact parameters and products, memory, lengths, layers, batches; nothing large is built."""

import itertools
import json
import math
import time

import jax
import pytest

from ablax import cli, costs, inspection
from ablax.experiment import base, read_experiment, resolve
from ablax.models.flops import forward_flops_per_token
from ablax.training import session

PAGE = """
from ablax.experiment import base

def get_config(size="tiny"):
    config = base(tokenizer="byte")
    config.data.source = {"kind": "text", "glob": PATH}
    config.data.source.document = "line"
    config.data.sequence_length = 16
    config.data.layout = "packed"
    config.training.steps = "2 epochs"
    config.training.batch_size = 2
    return config
"""


def tiny(**overrides):
    small = {"model.num_layers": 3, "model.width": 32, "model.num_heads": 2}
    small |= {"data.tokenizer.vocab_size": 300, "data.sequence_length": 32}
    return resolve(base(), small | {"training.batch_size": 4, "training.steps": 50} | overrides)


def parts(experiment, vocab_size=300):
    program = inspection.program_of(experiment, vocab_size, None)
    return program, session.abstract_state(program, experiment)


def test_parameters_are_those_that_training_starts_with():
    """Catches: counting the stacked layers once."""
    program, state = parts(tiny())
    real = jax.jit(program.init)(session.root_key(0), session.hyper_of(tiny()))
    found = inspection.parameters(state)
    assert found["total"] == sum(leaf.size for leaf in jax.tree.leaves(real.params))
    assert sum(math.prod(row["shape"]) for row in found["table"].values()) == found["total"]


@pytest.mark.parametrize("changes", [{}, {"model.unroll": 1, "model.activation": "swiglu"}])
def test_flops_agree_with_the_closed_form(changes):
    """Catches: a scan's body counted once instead of L times; a factor 2."""
    experiment = tiny(**changes)
    found = costs.flops(*parts(experiment))
    closed = forward_flops_per_token(experiment.model, 300, 32)
    assert found["forward_per_token"] == pytest.approx(closed, rel=1e-6)
    # Each product has two more in its gradient; that of the first layer's input is needed for the embedding.
    assert found["training_per_token"] == pytest.approx(3 * closed, rel=1e-6)


def test_recomputation_costs_operations_and_saves_memory():
    """Catches: a memory estimate that cannot see rematerialisation."""
    plain, full = (parts(tiny(**{"model.remat": kind})) for kind in ("none", "full"))
    assert costs.flops(*full)["training_per_token"] > costs.flops(*plain)["training_per_token"]
    assert costs.memory(*full)["activations"] < costs.memory(*plain)["activations"]


def test_a_loss_in_chunks_saves_the_logits():
    """Catches: an estimate that cannot show what the knob is for."""
    whole, chunked = (parts(tiny(**{"training.loss_chunk": n})) for n in (None, 4))
    saved = inspection.memory(*whole)["activations"] - inspection.memory(*chunked)["activations"]
    assert saved > 4 * 32 * 300 * 4  # float32 logits [B T V]


def test_memory_is_that_with_the_kernel_of_the_devices():
    """Catches: probabilities that no kernel would keep; products that are not counted because a kernel makes them."""
    long = tiny(**{"data.sequence_length": 256, "model.num_layers": 2})
    unknown, tpu = (inspection.inspect(long, platform=name) for name in (None, "tpu"))
    assert (unknown["attention_kernel"], tpu["attention_kernel"]) == ("reference", "splash")
    probabilities = 2 * 4 * 2 * 256 * 256 * 4  # float32 [L B N T T]
    saved = unknown["memory"]["activations"] - tpu["memory"]["activations"]
    assert saved > probabilities
    assert tpu["flops"] == unknown["flops"]
    asked = resolve(long, {"model.attention_kernel": "splash"})
    assert inspection.inspect(asked)["memory"] == tpu["memory"]
    assert inspection.inspect(asked)["flops"] == tpu["flops"]


def test_a_kernel_of_gpus_is_inspected_without_one(capsys):
    """Catches: a traceback of JAX, which looks for cuDNN; a figure that does not say what it assumes."""
    page = "--config=experiments/pretrain/decoder.py:tiny"
    knobs = ("--config.model.dtype=bfloat16", "--config.model.attention_kernel=cudnn")
    assert cli.main(["inspect", page, *knobs]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["attention_kernel"] == "reference"
    assert "attention kernel assumed" in captured.err


def test_accumulation_divides_the_activations():
    """Catches: the knob that an out-of-memory message recommends not showing in the estimate."""
    whole, split = (parts(tiny(**{"training.accumulation": k})) for k in (1, 4))
    ratio = costs.memory(*whole)["activations"] / costs.memory(*split)["activations"]
    assert 3.5 < ratio < 4.5


def test_a_model_of_175_billion_costs_seconds_and_no_memory():
    huge = {"model.num_layers": 96, "model.width": 12288, "model.num_heads": 96}
    huge |= {"data.tokenizer.vocab_size": 50257, "data.sequence_length": 2048}
    start = time.perf_counter()
    found = inspection.inspect(tiny(**huge), shapes=True)
    assert time.perf_counter() - start < 10
    assert found["parameters"]["total"] == pytest.approx(174.6e9, rel=1e-3)
    assert found["memory"]["optimizer"] == pytest.approx(8 * 174.6e9, rel=1e-3)
    json.dumps(found["layers"])


def test_layers_are_named_and_sized():
    rows = {row["layer"]: row for row in inspection.layers(*parts(tiny()))}
    assert rows["model"]["shape"] == [4, 32, 300]
    assert rows["model"]["bytes"] == 4 * 32 * 300 * 4
    assert any(name.startswith("blocks/") for name in rows)


def test_a_fitted_model_says_why_it_has_no_cost():
    found = inspection.inspect(resolve(base(), {"model": "ngram"}))
    assert found["parameters"] is None
    assert "fitted" in found["why"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    lines = [f"line {number}: {'abc' * (number % 7)}" for number in range(200)]
    (folder / "text.txt").write_text("\n".join(lines))
    (folder / "page.py").write_text(PAGE.replace("PATH", repr(str(folder / "text.txt"))))
    return folder / "page.py"


def test_the_command_shows_batches_in_colour_and_lengths_in_steps(page, capsys):
    """Catches: targets that are not the next token; weights of padding; epochs that stay epochs."""
    arguments = [f"--config={page}", "--config.model.num_layers=1", "--config.model.width=12"]
    assert cli.main(["inspect", *arguments, "--batch=2", "--layers"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert isinstance(found["durations"]["training.steps"], int)
    assert len(found["batches"]) == 2
    for batch in found["batches"]:
        for row in batch:
            assert len(row) == 16
            for here, after in itertools.pairwise(row):
                if here["weight"] and after["segment"] == here["segment"]:
                    assert here["target"] == after["text"]
            assert all(token["weight"] == 0 for token in row if token["segment"] == 0)
    assert "batch of step 1: 2 rows of 16 tokens" in captured.err
    assert "blocks/mlp" in captured.err


def test_every_knob_is_listed_with_its_default_its_mark_and_what_it_does(page, capsys):
    """Catches: a knob that is left out; a default of another kind; the value shown as the default."""
    arguments = [f"--config={page}", "--config.model=lstm", "--config.model.width=12", "--knobs"]
    assert cli.main(["inspect", *arguments]) == 0
    captured = capsys.readouterr()
    found = {row["knob"]: row for row in json.loads(captured.out)}
    experiment = resolve(base(model="lstm"))
    assert list(found) == list(
        inspection.settings(resolve(base(model="lstm", source="text:x", tokenizer="byte")))
    )
    assert (found["model.kind"]["value"], found["model.kind"]["default"]) == ("lstm", "decoder")
    assert found["model.width"]["value"] == 12
    assert found["model.width"]["default"] == type(experiment.model)().width
    assert found["training.steps"]["value"] == "2 epochs"
    assert found["optimizer.learning_rate"]["mark"] == "result, traced"
    assert found["data.prefetch"]["mark"] == "execution"
    assert all(row["doc"].strip() for row in found.values())
    for row in found.values():
        assert row["knob"] in captured.err
    assert "Batches prepared ahead." in captured.err


def test_a_wrong_knob_is_one_line(page, capsys):
    assert cli.main(["inspect", f"--config={page}", "--config.model.num_layer=1"]) == 2
    assert "did you mean 'num_layers'?" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "billions"), [("6.7b", 6.66), ("13b", 12.9), ("175b", 174.6)])
def test_what_a_device_of_a_mesh_holds(size, billions):
    """Without such devices, or the memory. Catches moments that are not split, and rows that every device holds."""
    page = read_experiment(f"experiments/pretrain/decoder.py:{size}").get_config()
    experiment = resolve(page, {"training.batch_size": 1024, "model.unroll": 1})
    sizes = {"data": 8, "fsdp": 16, "sequence": 1, "tensor": 1}
    found = inspection.inspect(experiment, sizes=sizes)
    whole = inspection.inspect(resolve(experiment, {"training.batch_size": 8}))
    parameters = found["parameters"]["total"]
    assert parameters == pytest.approx(billions * 1e9, rel=0.01)
    # Vectors stay whole on every device.
    assert found["memory"]["parameters"] == pytest.approx(4 * parameters / 16, rel=0.02)
    assert found["memory"]["optimizer"] == pytest.approx(8 * parameters / 16, rel=0.02)
    assert found["memory"]["activations"] == whole["memory"]["activations"]
    kernel = found["parameters"]["table"]["blocks/mlp/in/kernel"]
    assert kernel["partition"] == "-,fsdp,-"


@pytest.mark.parametrize("mesh", ["fsdp", "rows:2", "fsdp:0", "fsdp:2,", "fsdp:-1"])
def test_a_mesh_that_makes_no_sense_is_refused(mesh, capsys):
    page = "--config=experiments/pretrain/decoder.py:tiny"
    assert cli.main(["inspect", page, f"--mesh={mesh}"]) == 2
    assert "is not AXIS:N" in capsys.readouterr().err
