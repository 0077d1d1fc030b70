"""Models as pure functions of parameters."""
