"""What long tables need: votes by pieces of the ids, and columns that wait in files."""
