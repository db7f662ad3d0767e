"""Running work: child processes that end with their parent, several processes on GPUs, locks, progress, events,
liveness."""
