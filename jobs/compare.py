"""Run `skillshard compare` as a Ray job: `ray job submit -- python jobs/compare.py /data/shards --policy stratified --policy loss_order:eta=0.5 --steps 600 --out /data/compared`.

The script takes the words and options of `skillshard compare`, and runs on the cluster that receives the job. Every node must
see the same absolute paths. The exit code is 0 for success, 1 for an error in one sentence, and 2 for a wrong command line. Ray shows 1
for both kinds of failure.
"""

from skillshard.cli import run_job

if __name__ == "__main__":
    run_job("compare")
