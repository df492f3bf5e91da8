"""What keeps a run alive: requests from outside, and the guard against numbers that are not finite."""
