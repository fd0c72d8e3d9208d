"""The policies, one module for each family, and what they share. `core.select` lists them and documents their arguments."""
