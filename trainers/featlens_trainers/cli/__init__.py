"""Commands of the trainers."""
