"""What a user may set, how it is checked, and what follows from it."""
