"""`python -m unseen_ray`."""

from unseen_ray.cli.app import entry

if __name__ == "__main__":
    entry()
