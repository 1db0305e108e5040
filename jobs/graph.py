"""Run `skillshard graph` as a Ray job: `ray job submit -- python jobs/graph.py learn /data/shards --method linear --steps 600 --out /data/graph.json`.

The script takes the words and options of `skillshard graph`, and runs on the cluster that receives the job. Every node must
see the same absolute paths. The exit code is 0 for success, 1 for an error in one sentence, and 2 for a wrong command line. Ray shows 1
for both kinds of failure.
"""

from skillshard.cli import run_job

if __name__ == "__main__":
    run_job("graph")
