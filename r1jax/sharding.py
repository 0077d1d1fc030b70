"""Meshes, and the rules that lay arrays out on them.

A mesh has four axes: `data` (copies of the weights), `fsdp` (weights and optimiser
state cut, gathered when used), `expert` (the experts of sparse models dealt out; for all
else one more fsdp or data axis) and `tensor` (heads and feed-forward cut). Rows of a batch
are cut over all but tensor. Parameters follow an ordered list of (path regex,
PartitionSpec) that stands beside each model: the first match decides. To try another
layout change the list, nothing else.

Axes are of the Auto kind: the compiler propagates layouts from the few that are
given (`jax.make_mesh` would default to Explicit axes). jit with shardings replaces
`jax.pmap`, of which it is the general form.
"""

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "expert", "tensor")
BATCH = ("data", "fsdp", "expert")  # the axes that rows are cut over
Rules = tuple[tuple[str, P], ...]


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, expert: int = 1, devices=None
) -> Mesh:
    """A mesh of these sizes over `devices` (default: all); one size may be -1, the rest.

    Raises ValueError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, expert, tensor]
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise ValueError(f"mesh sizes {dict(zip(AXES, sizes, strict=True))}: at most one may be -1")
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"mesh data={data} fsdp={fsdp} expert={expert} tensor={tensor} does not cover "
            f"{len(devices)} devices; set one of config.mesh.data, fsdp, expert, tensor to -1 "
            "(it takes what is left) or make the product equal"
        )
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def batch_axis_size(mesh: Mesh) -> int:
    """Number of pieces that the rows of a batch are cut into."""
    return int(np.prod([mesh.shape[a] for a in BATCH]))


def rows(mesh: Mesh) -> NamedSharding:
    """Layout of an array whose first axis is the rows of a batch."""
    return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def constrain(x: jax.Array, *spec) -> jax.Array:
    """Fix the layout of `x` inside a jitted program; nothing where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*spec))


def path_name(path) -> str:
    """`blocks/attention/query/kernel` from a jax key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def shardings(mesh: Mesh, shapes, rules: Rules):
    """NamedSharding for every leaf of `shapes` (arrays or ShapeDtypeStructs) by the first rule.

    A rule's pattern is searched for in the leaf's path, so the same rules lay out the
    optimiser's moments, whose paths end in the parameter's. Scalars are replicated.
    Raises ValueError for a leaf that no rule matches, or whose dimension its axis
    does not divide.
    """

    def one(path, leaf):
        name = path_name(path)
        if leaf.ndim == 0:
            return replicated(mesh)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
        if spec is None:
            raise ValueError(f"no sharding rule matches parameter {name} {leaf.shape}; add one")
        for size, axes in zip(leaf.shape, spec, strict=False):
            names = (axes,) if isinstance(axes, str) else axes or ()
            pieces = int(np.prod([mesh.shape[a] for a in names]))
            if size % pieces:
                raise ValueError(
                    f"{name} {leaf.shape}: dimension {size} is not divisible by {pieces} "
                    f"(mesh axes {', '.join(f'{a}={mesh.shape[a]}' for a in names)}); use a mesh "
                    "whose axes divide it (config.mesh)"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, shapes)


def check_rows(mesh: Mesh, **counts: int) -> None:
    """Raises ValueError, with the mend, for a number of rows that the mesh cannot cut evenly."""
    pieces = batch_axis_size(mesh)
    for name, count in counts.items():
        if count % pieces:
            raise ValueError(
                f"{name}={count} is not divisible by the {pieces} pieces that the mesh cuts a "
                f"batch into; use {count - count % pieces or pieces} or {count + -count % pieces}"
            )
