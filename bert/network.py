"""BERT's encoder (Devlin et al., NAACL 2019), without a pooler; parameters have the names of `transformers`' BertModel.

It is written out here because importing that class takes longer than everything else that a script imports.

Shapes: B batch, N tokens, L width, h heads.
"""
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {   # by the names that configurations use
    "gelu": nn.GELU, "gelu_new": lambda: nn.GELU("tanh"), "gelu_pytorch_tanh": lambda: nn.GELU("tanh"),
    "relu": nn.ReLU, "silu": nn.SiLU, "swish": nn.SiLU, "tanh": nn.Tanh,
}


class Embeddings(nn.Module):
    """The sum of a token's vector, its place's and that of the first sentence: (B, N) int64 -> (B, N, L)."""

    def __init__(self, config: Any):
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, token_ids: Tensor) -> Tensor:
        places = torch.arange(token_ids.shape[1], device=token_ids.device)[None]
        x = self.word_embeddings(token_ids) + self.token_type_embeddings(torch.zeros_like(token_ids))
        return self.dropout(self.LayerNorm(x + self.position_embeddings(places)))


class SelfAttention(nn.Module):
    """Multi-head attention between tokens: (B, N, L), mask (B, 1, 1, N) bool, True for real tokens -> (B, N, L)."""

    def __init__(self, config: Any):
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)     # (B, h, N, L / h)
                             for project in (self.query, self.key, self.value))
        rate = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=rate).transpose(1, 2).flatten(2)


class Output(nn.Module):
    """The end of a branch: back to the encoder's width, dropout, the residual sum, LayerNorm."""

    def __init__(self, inner_width: int, config: Any):
        super().__init__()
        self.dense = nn.Linear(inner_width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, branch: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(branch)) + x)


class Layer(nn.Module):
    """Attention and feed-forward branches, each normalised after its sum: (B, N, L) -> same."""

    def __init__(self, config: Any):
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(config), "output": Output(config.hidden_size, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size),
                                           "activation": ACTIVATIONS[config.hidden_act]()})
        self.output = Output(config.intermediate_size, config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(self.intermediate["activation"](self.intermediate["dense"](x)), x)


class Bert(nn.Module):
    """token_ids (B, N) int64, mask (B, 1, 1, N) bool, True for real tokens -> last hidden state (B, N, L).

    `config` has the settings that `bert.BertConfig` lists. Linear and embedding weights start normal with its
    `initializer_range`, biases and the padding token's vector at 0.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})
        self.apply(lambda module: init_weights(module, config.initializer_range))

    def forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embeddings(token_ids)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        return x


@torch.no_grad()
def init_weights(module: nn.Module, deviation: float) -> None:
    """BERT's initialisation of one layer."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.normal_(0.0, deviation)
    if isinstance(module, nn.Linear):
        module.bias.zero_()
    elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
        module.weight[module.padding_idx].zero_()
