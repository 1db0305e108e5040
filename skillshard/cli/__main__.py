"""`python -m skillshard.cli`: the command `skillshard`."""

from skillshard.cli import main

if __name__ == "__main__":
    main()
