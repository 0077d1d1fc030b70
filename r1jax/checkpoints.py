"""Checkpoints: orbax's manager behind what the stages need of it.

A checkpoint is a folder `<stage>/<step>` with the items `params` (so that weights load
alone), `opt`, optionally `reference` and the host's `arrays`, and `meta` (JSON). Saves are
asynchronous and atomic: a folder appears under its step's name only when it is complete.
A checkpoint that cannot be read (truncated, foreign) is moved aside, never deleted, and the one
before it is used.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from r1jax.types import TrainState

log = logging.getLogger("r1jax")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names it and the mend."""


class Checkpoints:
    """The checkpoints of one stage; use as a context manager, which waits for pending saves."""

    def __init__(self, folder: str | Path, *, about: Mapping, keep: int = 2):
        """`about` goes into every checkpoint's meta: what its weights are the weights of."""
        self.folder, self._about = Path(folder).absolute(), dict(about)
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self._guard(self._manager.wait_until_finished)
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        meta: Mapping,
        *,
        step: int | None = None,
        reference=None,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Starts saving `state` under `step` (default: its own); returns when all is copied.

        `arrays` are the host's, too large for `meta`, and of any shapes.
        Raises CheckpointError when this or the previous save failed, e.g. on a full disk.
        """
        step = int(state.step) if step is None else step
        items = {
            "params": ocp.args.StandardSave(state.params),
            "opt": ocp.args.StandardSave({"opt_state": state.opt_state, "step": state.step}),
            "meta": ocp.args.JsonSave(self._about | dict(meta)),
        }
        if reference is not None:
            items["reference"] = ocp.args.StandardSave(reference)
        if arrays is not None:
            items["arrays"] = ocp.args.StandardSave(dict(arrays))
        self._guard(self._manager.save, step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Waits for the pending save; raises CheckpointError if it failed."""
        self._guard(self._manager.wait_until_finished)

    def _guard(self, call, *args, **kwargs):
        try:
            return call(*args, **kwargs)
        except Exception as error:
            free = shutil.disk_usage(self.folder).free
            complete = self.steps()
            raise CheckpointError(
                f"saving a checkpoint in {self.folder} failed ({free / 2**20:.0f} MiB free): "
                f"{_first_line(error)}. Complete checkpoints kept: {complete or 'none'}. "
                "Free some space and run the same command again to go on from the newest"
            ) from error

    def restore(self, state: TrainState, *, reference=None):
        """(state, meta, reference) of the newest readable checkpoint, or None if there is none.

        `state` and `reference` give shapes and layouts (arrays or ShapeDtypeStructs). The
        host's arrays, where there are any, are in the meta, as `arrays`.
        """
        for step in reversed(self.steps()):
            items = {
                "params": ocp.args.StandardRestore(abstract(state.params)),
                "opt": ocp.args.StandardRestore(
                    abstract({"opt_state": state.opt_state, "step": state.step})
                ),
                "meta": ocp.args.JsonRestore(),
            }
            if reference is not None:
                items["reference"] = ocp.args.StandardRestore(abstract(reference))
            if (self.folder / str(step) / "arrays").is_dir():
                items["arrays"] = ocp.args.StandardRestore()
            try:
                found = self._manager.restore(step, args=ocp.args.Composite(**items))
            except Exception as error:  # orbax and tensorstore raise many kinds
                self._set_aside(step, error)
                continue
            opt, meta = found["opt"], dict(found["meta"])
            if "arrays" in items:
                meta["arrays"] = dict(found["arrays"])
            state = TrainState(found["params"], opt["opt_state"], opt["step"])
            return state, meta, found.get("reference")
        return None

    def _set_aside(self, step: int, error: Exception) -> None:
        broken = self.folder / f"{step}.unreadable"
        shutil.rmtree(broken, ignore_errors=True)
        (self.folder / str(step)).rename(broken)
        self._manager.reload()
        log.warning(
            "checkpoint %s is unreadable (%s); moved to %s, falling back to the one before it",
            self.folder / str(step), _first_line(error), broken.name,
        )  # fmt: skip


def find(path: str | Path) -> Path:
    """The checkpoint folder meant by `path`: itself, or the newest of a stage, or of a run.

    A run's last stage with a complete checkpoint is taken. Raises CheckpointError naming the
    path where it holds none.
    """
    given, path = path, Path(path).absolute()
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(
            f"{path} {what}; give the folder of a run, of a checkpoint or of a published model "
            f"(config.json and safetensors). Nothing is downloaded: if {given} names a model on a "
            "hub, fetch its folder first"
        )
    if (path / "params").is_dir():
        return path
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        stages = json.loads((path / "config.json").read_text()).get("stages", [])
        folders = [path / "checkpoints" / name for name in reversed(stages)]
    else:
        folders = [path]
    for folder in folders:
        steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit() and p.is_dir()]
        if steps:
            return folder / str(max(steps))
    raise CheckpointError(
        f"{path} holds no complete checkpoint; give a run's folder, a stage's "
        "(RUN/checkpoints/STAGE), one checkpoint's (RUN/checkpoints/STAGE/STEP), or a published "
        "model's with config.json and model.safetensors"
    )


def load_meta(folder: Path) -> dict:
    """The `meta` item of a checkpoint folder."""
    try:
        return json.loads((folder / "meta" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a readable checkpoint of r1jax: {error}") from error


def load_params(folder: Path, template):
    """The `params` item of a checkpoint folder, with the shapes and layouts of `template`.

    Raises CheckpointError naming the folder where it is unreadable or of another shape.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder / "params", abstract(template))
    except Exception as error:
        raise CheckpointError(
            f"{folder} is not a readable checkpoint of this model: {_first_line(error)}"
        ) from error


def fingerprint(tree) -> str:
    """SHA-256 (hex) of the names, types, shapes and bytes of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def abstract(tree):
    """Shapes, types and layouts of a tree of arrays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
        tree,
    )


def _first_line(error: Exception) -> str:
    line = (str(error) or type(error).__name__).strip().splitlines()[0]
    # Tensorstore names many paths first and the cause last.
    return line if len(line) <= 300 else f"{line[:100]} … {line[-200:]}"
