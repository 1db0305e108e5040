#!/usr/bin/env bash
# Find skills in a corpus without metadata, by clusters of its texts.
#
#     examples/find_skills.sh CORPUS OUT                      try numbers of skills
#     examples/find_skills.sh CORPUS OUT NUMBER               cluster again with another number of skills
#     examples/find_skills.sh CORPUS OUT NUMBER NAMES.json    name the skills
#
# The rows of CORPUS have the fields `id` and `text`. Only the first call encodes the texts. Each call repeats the commands of the calls
# before, and a command whose output is finished does nothing. NAMES.json maps the names of clusters to names of skills, as in
# {"espresso-roast-grind": "coffee"}. Several clusters may get the same name. Clusters that the map leaves out keep their names.
#
# Environment: RANGE, smallest and largest number of skills to try (default 2:12).
set -euo pipefail

if (($# < 2 || $# > 4)); then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
corpus=$1 out=$2 number=${3:-} names=${4:-} range=${RANGE:-2:12}

# The number of skills that the criterion proposes. The embeddings stay beside the tags.
skillshard tag embedding "$corpus" --skills auto --skills-range "$range" --out "$out/proposed"
# The curve of the criterion and the sizes of the skills for all numbers of the range, with pictures in OUT/pictures.
skillshard inspect "$out/proposed" --skills-range "$range" --pictures "$out/pictures"

if [[ $number ]]; then
  skillshard tag embedding "$corpus" --from "$out/proposed" --skills "$number" --out "$out/chosen-$number"
  # The terms of each skill and its nearest samples, from which a person finds a name.
  skillshard inspect "$out/chosen-$number"
fi
if [[ $names ]]; then
  skillshard regroup "$out/chosen-$number" --map "$names" --out "$out/named-$number"
fi
