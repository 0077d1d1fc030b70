import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from r1jax import sharding
from r1jax.models.transformer import Transformer, TransformerConfig
from r1jax.optim import OPTIMIZERS
from r1jax.optim import RULES as OPTIMIZER_RULES


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 8, 1, 1)),
        (dict(tensor=2), (1, 4, 1, 2)),
        (dict(data=-1, fsdp=2, tensor=2), (2, 2, 1, 2)),
        (dict(data=2, fsdp=1, tensor=-1), (2, 1, 1, 4)),
        (dict(data=8, fsdp=1), (8, 1, 1, 1)),
        (dict(fsdp=2, expert=4), (1, 2, 4, 1)),
    ],
)
def test_mesh_sizes(sizes, shape):
    mesh = sharding.make_mesh(**sizes)
    assert tuple(mesh.shape.items()) == tuple(
        zip(("data", "fsdp", "expert", "tensor"), shape, strict=True)
    )
    assert sharding.batch_axis_size(mesh) == shape[0] * shape[1] * shape[2]
    assert len(set(mesh.devices.flat)) == 8


def test_mesh_of_some_devices(mesh1):
    assert list(mesh1.devices.flat) == [jax.devices()[0]]
    assert sharding.batch_axis_size(mesh1) == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(data=3), "data=3 fsdp=-1 expert=1 tensor=1 does not cover 8 devices"),
        (dict(data=2, fsdp=2), "data=2 fsdp=2 expert=1 tensor=1 does not cover 8 devices"),
        (dict(data=16), "does not cover 8 devices"),  # nothing is left for fsdp
        (dict(data=-1), "at most one may be -1"),
        (dict(data=0), "at most one may be -1"),
        (dict(tensor=-2), "at most one may be -1"),
    ],
)
def test_bad_mesh_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**sizes)


def test_rows_are_cut_and_the_rest_is_not(mesh8):
    x = jax.device_put(np.arange(24).reshape(8, 3), sharding.rows(mesh8))
    pieces = {tuple(map(tuple, np.asarray(s.data))) for s in x.addressable_shards}
    # four pieces of two rows; each on both devices of the tensor axis
    assert len(pieces) == 4 and {len(piece) for piece in pieces} == {2}
    assert len(x.addressable_shards) == 8
    y = jax.device_put(np.arange(6), sharding.replicated(mesh8))
    assert all((np.asarray(s.data) == np.arange(6)).all() for s in y.addressable_shards)


def test_constrain_does_nothing_without_a_mesh_and_lays_out_with_one(mesh8):
    x = jnp.arange(16.0).reshape(8, 2)
    assert sharding.constrain(x, sharding.BATCH, None) is x
    with jax.set_mesh(mesh8):
        y = jax.jit(lambda x: sharding.constrain(x, sharding.BATCH, None))(x)
    assert y.sharding.is_equivalent_to(sharding.rows(mesh8), 2)


def test_the_first_rule_decides(mesh8):
    shapes = {
        "a": {"kernel": np.zeros((4, 8)), "bias": np.zeros(8)},
        "b": [np.zeros((8, 2))],
        "count": np.float32(0),
    }
    rules = ((r"a/kernel$", P("tensor", "fsdp")), (r"kernel$", P()), (r"bias$|^b/0$", P("fsdp")))
    layout = sharding.shardings(mesh8, shapes, rules)
    assert layout == {
        "a": {
            "kernel": NamedSharding(mesh8, P("tensor", "fsdp")),
            "bias": NamedSharding(mesh8, P("fsdp")),
        },
        "b": [NamedSharding(mesh8, P("fsdp"))],
        "count": NamedSharding(mesh8, P()),  # scalars need no rule
    }


def test_a_parameter_without_a_rule(mesh8):
    shapes = {"blocks": {"gate": np.zeros((2, 3))}}
    with pytest.raises(
        ValueError, match=r"no sharding rule matches parameter blocks/gate \(2, 3\)"
    ):
        sharding.shardings(mesh8, shapes, ((r"kernel$", P()),))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (P("fsdp"), r"w \(6, 9\): dimension 6 is not divisible by 4 \(mesh axes fsdp=4\)"),
        (P(None, "tensor"), r"dimension 9 is not divisible by 2 \(mesh axes tensor=2\)"),
        (
            P(("fsdp", "tensor")),
            r"dimension 6 is not divisible by 8 \(mesh axes fsdp=4, tensor=2\)",
        ),
    ],
)
def test_a_dimension_that_its_axes_do_not_divide(mesh8, spec, message):
    with pytest.raises(ValueError, match=message):
        sharding.shardings(mesh8, {"w": np.zeros((6, 9))}, ((r"w$", spec),))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_lie_where_their_parameters_do(mesh8, name, tied):
    config = dict(vocabulary=32, width=16, layers=2, head_dim=4, mlp=24, tied=tied)
    model = Transformer(TransformerConfig(**config))
    params = jax.eval_shape(model.init, jax.random.key(0))
    layout = sharding.shardings(mesh8, params, model.rules)
    cut = {
        "/".join(str(k.key) for k in path): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(layout)
    }
    assert cut["embed"] == P("tensor", "fsdp")
    assert cut["blocks/attention/query/kernel"] == P(None, "fsdp", "tensor")
    assert cut["blocks/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert ("unembed" in cut) != tied

    state = jax.eval_shape(OPTIMIZERS[name]().init, params)
    state_layout = sharding.shardings(mesh8, state, model.rules + OPTIMIZER_RULES)
    found = dict.fromkeys(cut, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state_layout):
        ends = [p for p in cut if sharding.path_name(path).endswith("/" + p)]
        if ends:
            found[max(ends, key=len)] += 1
            assert leaf.spec == cut[max(ends, key=len)]
    # Adam has two moments; Muon one, for the blocks' matrices
    for path, count in found.items():
        assert count == (1 if name == "muon" and path.endswith("kernel") else 2)


def test_rows_that_the_mesh_cannot_cut(mesh1, mesh8):
    sharding.check_rows(mesh8, micro_rows=8, batch_rows=4)
    sharding.check_rows(mesh1, micro_rows=7)
    with pytest.raises(ValueError, match="micro_rows=10 is not divisible by the 4 .*use 8 or 12"):
        sharding.check_rows(mesh8, micro_rows=10)
    with pytest.raises(ValueError, match="batch_rows=3 is not divisible by the 4 .*use 4 or 4"):
        sharding.check_rows(mesh8, micro_rows=4, batch_rows=3)
