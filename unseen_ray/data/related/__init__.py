"""Which samples belong together: groups that the user names, and copies that are found."""
