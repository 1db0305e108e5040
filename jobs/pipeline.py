"""`skillshard run` as a Ray job: `ray job submit --working-dir . -- python jobs/pipeline.py pipeline.yaml`.

Takes the options of `skillshard run`; all stages run on the cluster that the job was submitted to, over one connection. The pipeline file
may lie in the working directory of the job. Every node must see the absolute paths in the file. Exit codes as of the command line: 0 done,
1 an error in one sentence, 2 usage (Ray shows 1 for both).
"""

from skillshard.cli import run_job

if __name__ == "__main__":
    run_job("run")
