"""`skillshard tag` as a Ray job: `ray job submit -- python jobs/tag.py metadata /data/corpus --field meta.category --out /data/tags`.

Takes the words and options of `skillshard tag`; runs on the cluster that the job was submitted to. Every node must see the same
absolute paths. Exit codes as of the command line: 0 done, 1 an error in one sentence, 2 usage (Ray shows 1 for both).
"""

from skillshard.cli import run_job

if __name__ == "__main__":
    run_job("tag")
