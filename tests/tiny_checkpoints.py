"""Tiny checkpoints as transformers saves them, with random weights; PyTorch is the oracle and no part of Ablax."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from ablax.interop import weights
from ablax.interop.rules import scatter
from ablax.interop.table import FAMILIES
from ablax.models.flops import abstract_params
from ablax.training.manifest import leaves_of

V, ROOM, T, D, L, N, F = 300, 304, 24, 16, 2, 4, 24
SIZES = {"hidden_size": D, "num_hidden_layers": L, "num_attention_heads": N, "intermediate_size": F}
TURNED = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": T}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8,
}
TEXT = "def f(x): return x + 1\n# the quick brown fox jumps over the lazy dog; 12 boxes of jugs\n"


@dataclasses.dataclass(frozen=True)
class Case:
    """A model: its class and config class in transformers, settings, and which tokenizer it has."""

    model: str
    config: str
    settings: dict[str, Any]
    marks: dict[str, str] = dataclasses.field(default_factory=lambda: {"bos": "<s>", "eos": "</s>"})


BERT_MARKS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA_MARKS = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
CASES = {
    "gpt2": Case(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": D, "n_layer": L, "n_head": N, "n_positions": T},
        {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    ),
    "gpt_neox": Case(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {
            **SIZES,
            "max_position_embeddings": T,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 50.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "llama": Case("LlamaForCausalLM", "LlamaConfig", TURNED),
    "llama3": Case(
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            **TURNED,
            "rope_parameters": LLAMA3,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 6,
        },
    ),
    "mistral": Case("MistralForCausalLM", "MistralConfig", {**TURNED, "sliding_window": 3}),
    "qwen2": Case(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {
            **TURNED,
            "rope_parameters": YARN,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
        },
        {"eos": "</s>"},
    ),
    "qwen3": Case("Qwen3ForCausalLM", "Qwen3Config", {**TURNED, "head_dim": 6}),
    "bert": Case(
        "BertForMaskedLM", "BertConfig", {**SIZES, "max_position_embeddings": T}, BERT_MARKS
    ),
    "roberta": Case(
        "RobertaForMaskedLM",
        "RobertaConfig",
        {**SIZES, "max_position_embeddings": T + 2, "type_vocab_size": 1},
        ROBERTA_MARKS,
    ),
}
DECODERS = [name for name in CASES if name not in ("bert", "roberta")]
FAMILY = {name: "llama" if name == "llama3" else name for name in CASES}


def tokenizer_of(marks: dict[str, str]) -> tokenizers.Tokenizer:
    """A tokenizer of at most V ids that begin with the marks: pieces of words for BERT's, bytes for the others."""
    specials = list(dict.fromkeys(marks.values()))
    if "cls" in marks:
        library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        library.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=V, special_tokens=specials)
    else:
        library = tokenizers.Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=V,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    library.train_from_iterator([TEXT] * 4, trainer)
    around = marks.get("cls") or marks.get("bos")
    if around:  # an encoding of ours must do without what a library puts around a text
        library.post_processor = processors.TemplateProcessing(
            f"{around} $A", special_tokens=[(around, library.token_to_id(around))]
        )
    return library


def saved(name: str, folder: pathlib.Path, spread: float = 0.3, **settings: Any) -> Any:
    """Saves a random model and its tokenizer; returns the model, in evaluation mode.

    Args:
      spread: standard deviation of the weights.
      settings: that differ from the case's.
    """
    import torch
    import transformers

    case = CASES[name]
    library = tokenizer_of(case.marks)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, **{f"{mark}_token": text for mark, text in case.marks.items()}
    )
    ids = {f"{m}_token_id": library.token_to_id(t) for m, t in case.marks.items()}
    ids = {name: ids.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = getattr(transformers, case.config)(
        vocab_size=ROOM, attn_implementation="eager", **{**ids, **case.settings, **settings}
    )
    model = getattr(transformers, case.model)(config).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():  # so that no bias is zero and no scale one
            noise = rng.normal(0, spread, parameter.shape)
            parameter.copy_(torch.tensor(noise + (parameter.ndim == 1), dtype=torch.float32))
    shard = "20KB" if name == "llama" else "1GB"
    model.save_pretrained(folder, max_shard_size=shard)
    fast.save_pretrained(folder)
    return model


def settings_of(name: str) -> dict[str, Any]:
    """config.json of a case, without transformers."""
    case = CASES[name]
    return {
        "model_type": FAMILY[name],
        "architectures": [case.model],
        "vocab_size": ROOM,
        **case.settings,
        **({"pad_token_id": 1} if name == "roberta" else {}),
    }


def written(
    name: str, folder: pathlib.Path, dtype: Any = np.float32, **settings: Any
) -> dict[str, np.ndarray]:
    """Writes a random checkpoint without PyTorch; returns its tensors.

    Args:
      dtype: of the tensors.
      settings: that differ from the case's.
    """
    told = settings_of(name) | settings
    family = FAMILIES[FAMILY[name]]
    model = family.read(told)
    rng = np.random.default_rng(0)
    shapes = leaves_of(abstract_params(model, ROOM, T))
    params = {
        path: rng.normal("scale" in path, 0.3, leaf.shape).astype(np.float32)
        for path, leaf in shapes.items()
    }
    made = scatter(family.weights, params, model.num_heads)
    tensors = {name: tensor.astype(dtype) for name, tensor in made}
    folder.mkdir(parents=True)
    weights.write(folder, tensors.items(), 10**9)
    (folder / "config.json").write_text(json.dumps(told))
    marks = CASES[name].marks
    (folder / "tokenizer.json").write_text(tokenizer_of(marks).to_str())
    named = {f"{mark}_token": text for mark, text in marks.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return tensors
