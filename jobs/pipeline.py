"""Run `skillshard run` as a Ray job: `ray job submit --working-dir . -- python jobs/pipeline.py pipeline.yaml`.

The script takes the options of `skillshard run`. All stages run on the cluster that receives the job, over one connection. The pipeline file
may lie in the working directory of the job. Every node must see the absolute paths in the file. The exit code is 0 for success, 1 for an
error in one sentence, and 2 for a wrong command line. Ray shows 1 for both kinds of failure.
"""

from skillshard.cli import run_job

if __name__ == "__main__":
    run_job("run")
