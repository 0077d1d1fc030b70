"""What a process sets up before jax starts, for programs on CPUs: memory and threads."""

import ctypes
import glob
import os
import sys
from pathlib import Path

# Of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to reuse freed memory instead of giving it back; whether it did.

    XLA on CPU allocates the results and temporaries of every call anew. By default large ones
    are mapped and unmapped each time, and the kernel zeroes every page again: a quarter of the
    CPU time of training the miniature. It has to be called before jax starts its threads,
    each of which would get an arena of its own. Blocks above 32 MB are still given back
    (glibc's limit), until `keep_large_blocks`.

    Does nothing without glibc, where an accelerator holds the arrays (a host's large
    buffers are then few, and better given back), and where the user has set malloc up.
    """
    own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if own or not on_cpu():
        return False
    one_arena = _set(M_ARENA_MAX, 1)  # or every thread keeps memory of its own
    _set(M_MMAP_THRESHOLD, 32 << 20)
    _set(M_TRIM_THRESHOLD, 2**31 - 1)
    _set(M_TOP_PAD, 64 << 20)
    _state["kept"] = one_arena
    return one_arena


def keep_large_blocks(parameter_bytes: int) -> bool:
    """Keeps blocks of any size, if `keep_freed_memory` did, for a small model.

    The temporaries of one program are one block, of 60 MB for the miniature's gradient: twice
    as fast without mapping. But large blocks of changing sizes leave holes. With 180 MB of
    weights a training step peaked at 3.5 GB instead of 2.3: larger models go without.
    """
    return _state["kept"] and parameter_bytes < 8 << 20 and _set(M_MMAP_MAX, 0)


def one_thread(weights: int) -> bool:
    """Lets XLA work with one thread where the model has so few weights; whether it does.

    Shared among two threads, operations as small as the miniature's (0.17 M weights) take as
    long, and half as much CPU time again: the threads spin while they wait for each other.
    Does nothing on accelerators, with several fake devices (which need threads), and where
    the user has set NPROC, the variable that XLA reads.
    """
    several = "device_count" in os.environ.get("XLA_FLAGS", "")
    if weights >= 1_000_000 or several or "NPROC" in os.environ or not on_cpu():
        return False
    os.environ["NPROC"] = "1"
    return True


def on_cpu() -> bool:
    """Whether jax will find no accelerator, as far as the device files tell."""
    accelerator = glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/accel*")
    return not accelerator or os.environ.get("JAX_PLATFORMS") == "cpu"


_state = {"kept": False}


def _set(option: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(option, value) == 1


def enable_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless the user set a folder of their own."""
    import jax  # not above: what stands before has to be called first

    if jax.config.jax_compilation_cache_dir is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "r1jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
