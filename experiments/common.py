"""What the experiments share."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """Seed and mesh: all devices on the fsdp axis unless a flag says otherwise."""
    config = ConfigDict()
    config.seed = 0
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    return config
