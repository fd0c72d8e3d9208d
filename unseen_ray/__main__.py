"""`python -m unseen_ray`."""

from unseen_ray.cli import main

if __name__ == "__main__":
    main()
