"""Rank-r adapters on linear maps of a frozen U-Net, one a category, gated by image.

For an adapted linear map y = W x + b the adapters give y + sum_k h_k (1/r) U_k D_k x with one gate
h_k an image and category. Source: Jiang et al., FairGen, arXiv 2412.18810, section on attribute
adapters; the form is SPM's (arXiv 2312.16145).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairbench.core.errors import ContractError
from fairbench.diffusion import backbone

__all__ = ["AdapterBank", "attention_linears", "cross_attention_linears", "time_linears"]


def cross_attention_linears(unet: nn.Module) -> dict[str, nn.Linear]:
    """Every linear map inside a cross-attention.

    Raises:
        ContractError: If there is none, as in an unconditional U-Net.
    """
    found = backbone.cross_attention_linears(unet)
    if not found:
        raise ContractError(
            "expected a U-Net with cross-attention (attn2) to adapt, found no such layer; "
            "use a text-to-image backbone"
        )
    return found


def attention_linears(unet: nn.Module) -> dict[str, nn.Linear]:
    """Every linear map inside an attention, self-attention too: to_q, to_k, to_v and to_out."""
    from diffusers.models.attention_processor import Attention

    return {
        f"{place}.{name}": module
        for place, attention in unet.named_modules()
        if isinstance(attention, Attention)
        for name, module in attention.named_modules()
        if isinstance(module, nn.Linear)
    }


def time_linears(unet: nn.Module) -> dict[str, nn.Linear]:
    """The linear map by which each residual block reads the embedding of the timestep."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith("time_emb_proj")
    }


class AdapterBank(nn.Module):
    """One adapter a category, in linear maps of a U-Net.

    Args:
        unet: Frozen; its parameters are never changed, except inside :meth:`merged`.
        categories: Names of the C categories, such as ``("gender=female", "gender=male")``.
        layers: Name -> the linear maps to adapt; None for every one in a cross-attention.
        rank: r.
        seed: Of the initial values: D uniform in ±1/sqrt(in), U zero, so that a fresh bank
            changes nothing.
    """

    def __init__(
        self,
        unet: nn.Module,
        categories: Sequence[str],
        layers: Mapping[str, nn.Linear] | None = None,
        *,
        rank: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.categories, self.rank = tuple(categories), rank
        self._layers = dict(cross_attention_linears(unet) if layers is None else layers)
        self._names = {name: name.replace(".", "/") for name in self._layers}
        self._gates: Tensor | None = None
        count = len(self.categories)
        draws = torch.Generator().manual_seed(seed)
        down, up = {}, {}
        for name, layer in self._layers.items():
            start = torch.rand((count, rank, layer.in_features), generator=draws) * 2 - 1
            down[self._names[name]] = nn.Parameter(start / layer.in_features**0.5)
            up[self._names[name]] = nn.Parameter(torch.zeros(count, layer.out_features, rank))
        self.down, self.up = nn.ParameterDict(down), nn.ParameterDict(up)
        self.to(next(unet.parameters()).device)

    @property
    def parameters_a_category(self) -> int:
        """Numbers that one category adds to the U-Net."""
        return sum(p[0].numel() for p in self.parameters())

    def acting(self, gates: Tensor) -> Tensor | None:
        """Gates, (B, C) on the CPU, where the adapters are; None if all of them are 0.

        To be asked before a loop: whether a tensor of a GPU is 0 can't be seen without waiting.
        """
        return gates.to(next(self.parameters()).device) if bool(gates.any()) else None

    @contextmanager
    def gated(self, gates: Tensor | None) -> Iterator[None]:
        """Within the context the adapters act with `gates`, (B, C): row b, category c.

        None is the base path, at no cost. Rows that fill up a network batch get gate 0.
        """
        if gates is None:
            yield
            return
        if gates.ndim != 2 or gates.shape[1] != len(self.categories):
            raise ContractError(
                f"gates must be (B, {len(self.categories)}); seen {tuple(gates.shape)}"
            )
        with ExitStack() as stack:
            for name, layer in self._layers.items():
                handle = layer.register_forward_hook(self._hook(self._names[name], gates))
                stack.callback(handle.remove)
            yield

    def _hook(self, key: str, gates: Tensor) -> Any:
        down = self.down[key].flatten(0, 1)
        up = self.up[key].permute(0, 2, 1).flatten(0, 1) / self.rank
        spread = gates.to(down).repeat_interleave(self.rank, dim=1)

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # Gate 0 for the rows that fill up a batch: the product keeps the batch's own shape,
            # since kernels round differently for another one.
            full = nn.functional.pad(spread, (0, 0, 0, len(output) - len(spread)))
            # (B, ..., C r): a timestep's embedding has no tokens between rows and channels.
            full = full.reshape(len(output), *(1,) * (output.ndim - 2), -1)
            coded = args[0].to(down.dtype) @ down.T * full
            changed: Tensor = output + (coded @ up).to(output.dtype)
            return changed

        return add

    def delta(self, name: str, weights: Tensor) -> Tensor:
        """(out, in) update of one layer for strengths `weights`, (C,): sum of whole updates.

        Factors are never added up: (U1 + U2)(D1 + D2) has cross terms that no adapter has.
        """
        key = self._names[name]
        scaled = weights.to(self.up[key]).view(-1, 1, 1) * self.up[key] / self.rank
        return torch.einsum("cor,cri->oi", scaled, self.down[key])

    def merge(self, weights: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer -> its weight without and with the update for strengths `weights`, (C,)."""
        pairs = {}
        with torch.no_grad():
            for name, layer in self._layers.items():
                base = layer.weight.data
                changed = base.float() + self.delta(name, weights)
                pairs[name] = (base, changed.to(base.dtype))
        return pairs

    @contextmanager
    def merged(self, pairs: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Within the context the layers hold merged weights, at no cost a call."""
        for name, (_, changed) in pairs.items():
            self._layers[name].weight.data = changed
        try:
            yield
        finally:
            for name, (base, _) in pairs.items():
                self._layers[name].weight.data = base
