"""One module a system; each has `build()`, which returns what `_step.System` describes."""
