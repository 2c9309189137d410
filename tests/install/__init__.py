"""Installing: what pip finds, what make does, what a wheel brings."""
