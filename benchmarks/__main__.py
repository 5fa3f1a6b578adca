"""`python -m benchmarks`: how fast saving and loading are; the others say how they are run."""

from benchmarks.speed.command import main

if __name__ == "__main__":
    main()
