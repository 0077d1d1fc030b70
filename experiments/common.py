"""What the experiments share."""

from ml_collections import ConfigDict

# Of the miniatures' models: 0.17 million parameters with a vocabulary of 400.
MINI_MODEL = dict(
    width=64, layers=3, heads=4, kv_heads=2, head_dim=16, mlp=192, qkv_bias=True, tied=True,
    context=256,
)  # fmt: skip


def base() -> ConfigDict:
    """Seed and mesh: all devices on the fsdp axis unless a flag says otherwise."""
    config = ConfigDict()
    config.seed = 0
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    return config
