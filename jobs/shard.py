"""Run `skillshard shard` as a Ray job: `ray job submit -- python jobs/shard.py /data/corpus --tags /data/tags --out /data/shards`.

The script takes the arguments and options of `skillshard shard`, and runs on the cluster that receives the job. Every node must
see the same absolute paths. The exit code is 0 for success, 1 for an error in one sentence, and 2 for a wrong command line. Ray shows 1
for both kinds of failure.
"""

from skillshard.cli import run_job

if __name__ == "__main__":
    run_job("shard")
