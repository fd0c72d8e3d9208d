"""Which policy to use, decided by short trainings."""
