"""The same GPT and training step in PyTorch: what nanoGPT does in one step, its sampling of batches included."""

import math
from typing import Any

import numpy as np
import torch
from setting import Setting
from torch import nn
from torch.nn import functional


class TorchBlock(nn.Module):
    """Attention by `scaled_dot_product_attention` and a GELU network, each behind a LayerNorm; no biases."""

    def __init__(self, setting: Setting):
        super().__init__()
        width = setting.width
        self.heads = setting.heads
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B T D] -> [B T D]."""
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (p.view(batch, length, self.heads, -1).transpose(1, 2) for p in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class TorchGpt(nn.Module):
    """Tied embeddings, learned positions."""

    def __init__(self, setting: Setting):
        super().__init__()
        self.tokens = nn.Embedding(setting.vocab, setting.width)
        self.positions = nn.Embedding(setting.length, setting.width)
        self.blocks = nn.ModuleList(TorchBlock(setting) for _ in range(setting.layers))
        self.norm = nn.LayerNorm(setting.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / math.sqrt(2 * setting.layers) if residual else 0.02
                )

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats of [B T] tokens."""
        x = self.tokens(tokens) + self.positions(
            torch.arange(tokens.shape[1], device=tokens.device)
        )
        for block in self.blocks:
            x = block(x)
        found = functional.linear(self.norm(x), self.tokens.weight)
        return functional.cross_entropy(found.view(-1, found.shape[-1]), targets.view(-1))


class Nanogpt:
    """Training steps: random windows, forward, backward, clipping at 1, AdamW, zero_grad.

    Args:
      stream: the text, uint16 [tokens].
      fused: PyTorch's fused AdamW; nanoGPT takes it on a GPU only.
    """

    def __init__(self, setting: Setting, stream: np.ndarray, fused: bool):
        torch.set_num_threads(setting.threads)
        self.setting, self.stream = setting, stream
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = TorchGpt(setting).to(self.device)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        options = {"fused": True} if fused else {}
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), **options)
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")
            self.model = torch.compile(self.model)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and targets, int64 [B T], at random places."""
        length = self.setting.length
        starts = torch.randint(len(self.stream) - length, (self.setting.batch,)).tolist()
        rows = [self.stream[s : s + length + 1].astype(np.int64) for s in starts]
        tokens = torch.stack([torch.from_numpy(row[:-1]) for row in rows])
        targets = torch.stack([torch.from_numpy(row[1:]) for row in rows])
        if self.device == "cuda":
            tokens, targets = (
                t.pin_memory().to(self.device, non_blocking=True) for t in (tokens, targets)
            )
        return tokens, targets

    def __call__(self, count: int) -> None:
        """Takes steps and waits for the last."""
        loss = torch.zeros(())
        for _ in range(count):
            tokens, targets = self.batch()
            with torch.autocast(
                self.device, torch.bfloat16, enabled=self.setting.dtype == "bfloat16"
            ):
                loss = self.model(tokens, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"PyTorch's loss is {loss.item()}")
