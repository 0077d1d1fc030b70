"""The stages of an experiment: one readable loop each, none importing another.

A stage is `run(config, run, params, …) -> params`: it resumes from its newest checkpoint,
writes metrics and checkpoints as it goes, and returns its final parameters.
"""
