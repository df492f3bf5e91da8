"""Who this process is among the others. Only this package reads environment variables."""
