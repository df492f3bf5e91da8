"""What a run needs before it starts - memory, time, traffic, disk - and where a recipe cannot run as asked."""
