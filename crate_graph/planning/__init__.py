"""What a run needs before it starts: memory, time, traffic and disk, from a traced model, and where a recipe cannot run."""
