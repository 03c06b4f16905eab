"""What replicas tell each other in a weight update: gradients, and weights where each of them steps only its share.

With sharded optimiser state (ZeRO stage 1, arXiv 1910.02054; PopTorch's replicated tensor sharding) every replica keeps the
state of some parameters, steps these, and gives their weights to the others. The numbers are those of unsharded state.
"""

from __future__ import annotations

from typing import Dict, Mapping

import torch
from torch import Tensor, nn

from optim.rounded import in_groups
from optim.stochastic_rounding import Rounding
from runtime.peers import Peers

MESSAGE = 2**24  # numbers that are sent at once: what is needed beside the gradients stays small


def reduce_over_replicas(gradients: Mapping[str, Tensor], peers: Peers, rounding: Rounding, divisor: float) -> None:
    """Sums gradients in float32 over the processes that hold the same parameters, and divides them, in place."""
    if peers.num_replica_groups == 1:
        return
    for names in in_groups(gradients, MESSAGE):
        flat = torch.cat([gradients[name].flatten().float() for name in names])
        peers.sum_over_replicas(flat)
        if divisor != 1.0:
            flat.div_(divisor)
        for name, part in zip(names, flat.split([gradients[name].numel() for name in names])):
            rounding.write(gradients[name], part.view_as(gradients[name]), "replicas", name)


def split_over_replicas(parameters: Mapping[str, nn.Parameter], num_groups: int) -> Dict[str, int]:
    """Which replica group keeps the state of each parameter: the largest first, each to the group with the least so far."""
    load = [0] * num_groups
    owners = {}
    for name in sorted(parameters, key=lambda name: -parameters[name].numel()):
        owners[name] = load.index(min(load))
        load[owners[name]] += parameters[name].numel()
    return owners


@torch.no_grad()
def share_weights(parameters: Mapping[str, nn.Parameter], owners: Mapping[str, int], peers: Peers) -> None:
    """Gives every parameter its owner's weights, in all processes that hold it."""
    for owner in range(peers.num_replica_groups):
        own = {name: value for name, value in parameters.items() if owners[name] == owner}
        for names in in_groups(own, MESSAGE):
            flat = torch.cat([own[name].flatten() for name in names])
            peers.share_over_replicas(flat, owner)
            for name, part in zip(names, flat.split([own[name].numel() for name in names])):
                own[name].copy_(part.view_as(own[name]))
