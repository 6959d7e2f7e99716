"""A transformers model of which each process of a group holds a part, by the plan that the model declares.

transformers reads and cuts the weights (`tp_plan="auto"`). Its own linear layers would compute on them as
they are; ours compute on packed weights, in blocks (`hf_linear`), and what processes exchange after a layer
must be added in an order that no batch changes. So linear layers and embeddings give up their hooks, become
plain layers of this process's part, and are connected again once they have been prepared. All other parts of
the plan, such as experts, keep the hooks of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from math import gcd
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from edge_verifier.engines.rank_group import RankGroup
from protocol.errors import MissingLibraryError, ModelError

Forward = Callable[[Tensor], Tensor]

_OWN_OUTPUT = {"colwise"}
_GATHERED_OUTPUT = {"colwise_gather_output", "colwise_rep"}
_OWN_INPUT = {"rowwise"}
_WHOLE_INPUT = {"rowwise_split_input", "rowwise_rep"}
_OWN_TOKENS = {"embedding_rowwise"}
_NO_EXCHANGE = {"replicate", "mla_kv_a_proj", "replicated_with_grad_allreduce"}
"""Styles that mean something for gradients only."""
_KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value")


def distribution(config: Any, group: RankGroup) -> dict[str, Any]:  # noqa: ANN401 - transformers is untyped here
    """What `from_pretrained` must be told to read this process's part only.

    Raises:
        ModelError: the model cannot be split over so many processes, or not by this installation.
    """
    _check_plan(config, group.size)
    try:
        from transformers.distributed import DistributedConfig  # noqa: PLC0415 - older ones lack it
    except ImportError as error:
        raise MissingLibraryError(
            "this version of transformers cannot split a target over processes",
            hint="pip install --upgrade transformers accelerate",
        ) from error
    if find_spec("accelerate") is None:
        raise MissingLibraryError(
            "transformers needs accelerate to split a target over processes", hint="pip install accelerate"
        )
    return {"distributed_config": DistributedConfig(tp_size=group.size, tp_plan="auto")}


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of which this process holds a part; widths and bias are those of the whole."""

    module: nn.Module
    style: str
    width_in: int
    width_out: int
    bias: Tensor | None
    is_head: bool


class Shards:
    """The linear layers and embeddings of a model that transformers has just cut.

    Raises:
        ModelError: a layer is cut in a way that is not served; the architecture is named.
    """

    def __init__(self, model: Any, group: RankGroup) -> None:  # noqa: ANN401
        self.group = group
        plan = {name: style for name, style in (model.tp_plan or {}).items() if style not in _NO_EXCHANGE}
        served = _OWN_OUTPUT | _GATHERED_OUTPUT | _OWN_INPUT | _WHOLE_INPUT
        self._layers: list[_Layer] = []
        for name, module in model.named_modules():
            style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
            if type(module) is nn.Embedding and style in _OWN_TOKENS and module.max_norm is None:
                self._layers.append(_localised(module, style, (module.num_embeddings, module.embedding_dim)))
            if style is None or type(module) is not nn.Linear:
                continue
            if style not in served:
                raise ModelError(
                    f"architecture {type(model).__name__} splits its layer {name} as {style}, which is not"
                    " served",
                    hint="run it in one process, without torchrun",
                )
            is_head = module is model.get_output_embeddings()
            widths = module.in_features, module.out_features
            self._layers.append(_localised(module, style, widths, is_head=is_head))
            module.out_features, module.in_features = module.weight.shape

    def connect(self, *, is_exact: bool) -> None:
        """Let every layer's present `forward`, of this process's part, give what the whole layer gives."""
        for layer in self._layers:
            layer.module.forward = self._connected(layer, layer.module.forward, is_exact=is_exact)

    def _connected(self, layer: _Layer, forward: Forward, *, is_exact: bool) -> Forward:
        group, style, bias = self.group, layer.style, layer.bias
        n_own = -(-layer.width_in // group.size)
        if isinstance(layer.module, nn.Embedding):
            look_up = _own_tokens(layer.module.weight, group.rank * n_own)
            return lambda tokens: group.sum(look_up(tokens), is_exact=is_exact)
        if style in _OWN_OUTPUT:
            return forward
        if style in _GATHERED_OUTPUT:
            gather = group.columns_for_leader if layer.is_head else group.columns
            return lambda rows: gather(forward(rows), layer.width_out)

        def summed(rows: Tensor) -> Tensor:
            total = group.sum(forward(rows), is_exact=is_exact)
            return total if bias is None else total + bias

        if style in _OWN_INPUT:
            return summed
        own = slice(group.rank * n_own, (group.rank + 1) * n_own)
        return lambda rows: summed(rows[..., own])


def _own_tokens(weight: Tensor, first: int) -> Forward:
    """Looks tokens up among those from `first` on; zeros for all others, which other processes hold."""

    def look_up(tokens: Tensor) -> Tensor:
        own = tokens - first
        is_other = (own < 0) | (own >= len(weight))
        return functional.embedding(own.masked_fill(is_other, 0), weight).masked_fill(is_other[..., None], 0)

    return look_up


def _localised(
    module: nn.Linear | nn.Embedding, style: str, widths: tuple[int, int], *, is_head: bool = False
) -> _Layer:
    """Make a cut layer a plain one of this process's part, without what transformers hung on it."""
    module.__dict__.pop("forward", None)
    for name, parameter in list(module.named_parameters(recurse=False)):
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        module.register_parameter(name, nn.Parameter(local.detach(), requires_grad=False))
    bias: Tensor | None = None
    if style in _OWN_INPUT | _WHOLE_INPUT:
        # Added once, after the sum, and not by every process.
        bias = getattr(module, "bias", None)
        module.register_parameter("bias", None)
    return _Layer(module, style, *widths, bias, is_head)


def _check_plan(config: Any, size: int) -> None:  # noqa: ANN401
    """Refuse by name what its configuration already shows."""
    text_config = config.get_text_config(decoder=True)
    name, plan = config.model_type, getattr(text_config, "base_model_tp_plan", None)
    if not plan:
        raise ModelError(
            f"architecture {name} has no plan of how to split it over processes",
            hint="run it in one process, without torchrun",
        )
    has_own_heads = any(
        rule.rpartition(".")[2] in _KEY_PROJECTIONS and style in _OWN_OUTPUT for rule, style in plan.items()
    )
    heads = text_config.num_attention_heads
    kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
    common = gcd(heads, kv_heads)
    if has_own_heads and common % size:
        counts = ", ".join(str(n) for n in range(2, common + 1) if common % n == 0)
        raise ModelError(
            f"the target ({name}) has {heads} attention heads and {kv_heads} key-value heads, which {size}"
            " processes cannot share evenly",
            hint=f"it can be split over {counts} processes" if counts else "run it without torchrun",
        )
