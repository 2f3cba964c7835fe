"""Models of the project's own become checkpoints of the family that fits, or none."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import ablax
import tiny_checkpoints
from ablax import cli
from ablax.config import RequestError
from ablax.experiment import base
from ablax.interop.exporting import choose, export_hf, sized
from ablax.interop.fields import explicit
from ablax.interop.importing import import_hf
from ablax.interop.table import FAMILIES
from ablax.interop.weights import INDEX
from ablax.models.lstm import LstmConfig
from ablax.models.positions import AlibiPositions, RotaryPositions
from ablax.models.transformer import DecoderConfig, EncoderConfig
from tiny_checkpoints import CASES, FAMILY

LLAMA = {
    "norm": "rmsnorm",
    "bias": False,
    "activation": "swiglu",
    "positions": RotaryPositions(),
}


@pytest.mark.parametrize("name", CASES)
def test_a_config_says_what_was_read_from_it(name):
    """Catches: a field that is read and not written, or written under a name that is not read."""
    family = FAMILIES[FAMILY[name]]
    model = family.read(tiny_checkpoints.settings_of(name))
    again = family.read(family.write(model) | {"vocab_size": 1})
    assert explicit(again) == explicit(model)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (DecoderConfig(), "gpt2"),
        (DecoderConfig(**LLAMA), "llama"),
        (DecoderConfig(**LLAMA, attention_pattern=(8,)), "mistral"),
        (DecoderConfig(**LLAMA, qkv_bias=True), "qwen2"),
        (DecoderConfig(**LLAMA, query_key_norm=True, head_width=96), "qwen3"),
        (
            DecoderConfig(parallel_residual=True, positions=RotaryPositions(fraction=0.25)),
            "gpt_neox",
        ),
        (EncoderConfig(num_token_types=2), "bert"),
    ],
)
def test_the_family_that_fits_is_chosen(model, family):
    found, told = choose(sized(model, 64), None)
    assert found.name == told["model_type"] == family


@pytest.mark.parametrize(
    ("model", "family", "message"),
    [
        (DecoderConfig(logit_softcap=30.0), "gpt2", "model.logit_softcap=30.0 has no place"),
        (
            DecoderConfig(**{**LLAMA, "positions": AlibiPositions()}),
            "llama",
            "model.positions is not rotary",
        ),
        (EncoderConfig(), "gpt2", "a EncoderConfig has no place in this family"),
        (DecoderConfig(scale_embeddings=True), None, "fits no family .*gpt2: model.scale_embedd"),
        (DecoderConfig(), "gpt5", "--family=gpt5 is unknown; did you mean 'gpt2'"),
        (LstmConfig(), None, "a LstmConfig is no Transformer"),
    ],
)
def test_what_config_json_cannot_say_is_refused(model, family, message):
    """Catches: a knob that is dropped, so that the checkpoint computes something else."""
    with pytest.raises(RequestError, match=message):
        choose(sized(model, 64), family)


def test_a_model_that_was_trained_here(tmp_path, capsys):
    """With a tokenizer of its own, which is left out. Catches: a table of positions of another length."""
    config = base(tokenizer="byte", schedule="constant")
    (tmp_path / "text.txt").write_text("".join(f"the fox {n}\n" for n in range(60)))
    config = ablax.resolve(
        config,
        {
            "data.source": f"text:{tmp_path / 'text.txt'}",
            "data.source.document": "line",
            "data.split.validation": 0.5,
            "data.split.shared": "allow",
            "data.sequence_length": 16,
            "model.num_layers": 1,
            "model.width": 16,
            "model.num_heads": 2,
            "training.steps": 1,
            "training.batch_size": 2,
            "schedule.warmup": 0,
            "evaluation.documents": 1,
            "writers.tensorboard": False,
        },
    )
    ablax.train(config, tmp_path / "run", progress=False)
    out = tmp_path / "out"
    command = ["export-hf", f"--workdir={tmp_path / 'run'}", f"--out={out}", "--dtype=bfloat16"]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert "left out" in captured.err
    assert json.loads(captured.out)["files"] == ["config.json", "model.safetensors"]
    told = json.loads((out / "config.json").read_text())
    assert (told["n_positions"], told["n_inner"], told["vocab_size"]) == (16, 64, 258)
    tensors = load_file(out / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}
    table = ablax.load(tmp_path / "run").params["tokens"]["embedding"]
    narrow = np.asarray(table).astype(tensors["transformer.wte.weight"].dtype)
    np.testing.assert_array_equal(tensors["transformer.wte.weight"], narrow)


def test_half_precision_comes_back_as_it_was(tmp_path):
    """In several files. Catches: an export in float32 of what was imported in bfloat16; an index without its files."""
    import ml_dtypes

    tensors = tiny_checkpoints.written("llama", tmp_path / "theirs", dtype=ml_dtypes.bfloat16)
    import_hf(str(tmp_path / "theirs"), tmp_path / "run", say=lambda line: None)
    found = export_hf(tmp_path / "run", tmp_path / "out", shard_bytes=4000)
    places = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    assert set(places.values()) == {f for f in found["files"] if f.startswith("model-")}
    assert len(set(places.values())) > 3
    assert places.keys() == tensors.keys()
    for name, file in places.items():
        again = load_file(tmp_path / "out" / file)[name]
        assert again.dtype == tensors[name].dtype
        np.testing.assert_array_equal(again, tensors[name])
