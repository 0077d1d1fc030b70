"""DeepSeek-R1's training system in JAX.

Importing the package is fast and touches no device: import the module you need
(`from r1jax import losses`, `from r1jax.rewards import math`).
"""

__version__ = "0.1.0"
