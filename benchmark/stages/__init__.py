"""What each kind of stage reads, runs and leaves on disk."""
