"""Tasks of instruction tuning, one module each: instructions, training samples, decoding of answers, evaluation.

To add a task, subclass :class:`components.tasks.base.Task` in one module and add one entry to :data:`components.registries.TASKS`.
"""
