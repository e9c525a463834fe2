"""A BERT encoder in plain torch, which reads published weights.

Devlin et al., "BERT: pre-training of deep bidirectional transformers" (2019); mean pooling and unit
length as in Reimers and Gurevych, "Sentence-BERT" (2019). Written out so that every converter sees a
plain graph: no dependency on a model library, no data-dependent branches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: Added to the attention scores of padding: large enough that its softmax is 0 in every precision.
_MASKED = -1e4


class Embeddings(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = int(config["hidden_size"])
        self.word_embeddings = nn.Embedding(int(config["vocab_size"]), width)
        self.position_embeddings = nn.Embedding(int(config["max_position_embeddings"]), width)
        self.token_type_embeddings = nn.Embedding(int(config["type_vocab_size"]), width)
        self.LayerNorm = nn.LayerNorm(width, eps=float(config["layer_norm_eps"]))

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: ids.shape[1]]
        x = self.word_embeddings(ids) + positions + self.token_type_embeddings.weight[0]
        result: Tensor = self.LayerNorm(x)
        return result


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor, penalty: Tensor) -> Tensor:
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.size) + penalty
        mixed = torch.softmax(scores, dim=-1) @ value
        return mixed.transpose(1, 2).reshape(x.shape)


class Output(nn.Module):
    """A linear layer, added to its block's input and normalized."""

    def __init__(self, taken: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(taken, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        result: Tensor = self.LayerNorm(self.dense(x) + residual)
        return result


class Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        eps = float(config["layer_norm_eps"])
        self.attention = nn.ModuleDict(
            {
                "self": SelfAttention(width, int(config["num_attention_heads"])),
                "output": Output(width, width, eps),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = Output(inner, width, eps)

    def forward(self, x: Tensor, penalty: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, penalty), x)
        inner = nn.functional.gelu(self.intermediate["dense"](x))
        result: Tensor = self.output(inner, x)
        return result


class SentenceEncoder(nn.Module):
    """Token ids and mask, INT64 [rows, tokens], to sentence vectors of length 1, FP32 [rows, width]."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(int(config["num_hidden_layers"])))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embeddings(input_ids)
        seen = attention_mask.to(x.dtype)
        penalty = (1.0 - seen)[:, None, None, :] * _MASKED
        for layer in self.layers:
            x = layer(x, penalty)
        total = (x * seen[:, :, None]).sum(dim=1)
        mean = total / seen.sum(dim=1, keepdim=True).clamp(min=1.0)
        length: Tensor = mean.norm(dim=1, keepdim=True).clamp(min=1e-6)
        vector: Tensor = mean / length
        return vector


def load(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> SentenceEncoder:
    """The encoder with published weights, in eval mode. Weights that it has no use for are left out."""
    encoder = SentenceEncoder(config)
    named = {name: name.replace("layers.", "encoder.layer.", 1) for name in encoder.state_dict()}
    encoder.load_state_dict({ours: weights[theirs] for ours, theirs in named.items()})
    return encoder.eval()
