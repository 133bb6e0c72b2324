"""Predicted time of the collectives of data-parallel training, on links from data sheets."""

from eva_fast.planning.rates import Device

# Rings reach about this share of a link, and this share of the backward pass can hide them.
LINK_SHARE = 0.8
OVERLAP_SHARE = 0.8
LATENCY_SECONDS = 20e-6


def ring_seconds(size: int, gpus: int, device: Device) -> float:
    """One pass around a ring (all-gather or reduce-scatter) of `size` bytes over `gpus` devices:
    inside a node over its links; across nodes each GPU has its own network port and the slower of
    both bounds. Twice this is an all-reduce. 0 on one device."""
    if gpus == 1:
        return 0.0
    if gpus <= device.gpus_per_node:
        rate = device.link_bytes
    else:
        # Hierarchical: each GPU carries its share of the node's data over its own port.
        rate = min(device.link_bytes, device.network_bytes * device.gpus_per_node)
    steps = gpus - 1
    return size * steps / gpus / (rate * LINK_SHARE) + LATENCY_SECONDS


def port_seconds(size: int, nodes: int, device: Device) -> float:
    """One pass around a ring of `nodes` GPUs, one of each machine, by their own network ports."""
    if nodes == 1:
        return 0.0
    return size * (nodes - 1) / nodes / (device.network_bytes * LINK_SHARE) + LATENCY_SECONDS


def exposed_seconds(
    parameters: int,
    item: int,
    gpus: int,
    device: Device,
    sharding: str,
    backward_seconds: float,
    micro_batches: int = 1,
) -> tuple[float, float]:
    """(seconds on the wire, seconds not hidden behind the backward pass) of one optimiser step.

    Replicas all-reduce gradients once; sharded optimiser states reduce-scatter gradients and
    gather weights; full sharding gathers the weights twice every micro-batch; hybrid does so within
    a machine, and all-reduces a machine's share of the gradients with the others."""
    size, passes = parameters * item, 1 + 2 * micro_batches
    if sharding == "hybrid" and gpus > device.gpus_per_node:
        inside = device.gpus_per_node
        wire = passes * ring_seconds(size, inside, device)
        wire += 2 * port_seconds(size // inside, gpus // inside, device)
    else:
        gathers = sharding in ("full", "hybrid")
        wire = (passes if gathers else 2) * ring_seconds(size, gpus, device)
    return wire, exposed_of(wire, backward_seconds)


def exposed_of(wire: float, beside: float) -> float:
    """Seconds on the wire that a computation of `beside` seconds does not hide."""
    return max(0.0, wire - OVERLAP_SHARE * beside)
