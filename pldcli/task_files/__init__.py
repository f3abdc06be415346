"""Where a task's rows come from."""
