#!/usr/bin/env bash
# The fine-tuning experiment of the SKILL-IT paper: one target skill, a brute-force graph, SKILL-IT against static mixtures.
#
#     examples/paper/experiment.sh TASKS MODEL OUT spanish-qg
#     examples/paper/experiment.sh TASKS MODEL OUT stance-detection
#
# TASKS is the folder `tasks` of Natural Instructions, and MODEL the folder of a causal model with its tokenizer. A command that is run
# again does nothing where its output is finished, and goes on where it was stopped.
#
# Environment, with the numbers of the paper as defaults: STEPS (600), ROUND_STEPS (100), BATCH (4), SEEDS (5), LR (5e-5), WINDOW (512).
# HOLDOUT (0.02), DEVICE (auto) and WORKERS (1) are ours.
set -euo pipefail

if (($# != 4)); then
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mkdir -p "$3"
tasks=$(realpath "$1") model=$(realpath "$2") out=$(realpath "$3") experiment=$4

case $experiment in
  spanish-qg)
    target="Question Generation/Spanish/Spanish" eta=0.8
    others=("Question Answering/English/English" "Question Answering/Spanish/Spanish" "Question Generation/English/English")
    ;;
  stance-detection)
    target="Stance Detection/English/English" eta=0.2
    others=("Text Matching/English/English")
    ;;
  *)
    echo "$experiment is no experiment: give spanish-qg or stance-detection." >&2
    exit 2
    ;;
esac

# A task is a JSON object. `Instances` are the rows, and the category and the languages of the task are the skill.
skillshard tag metadata "$tasks" --rows Instances --text '{Definition.0}\n\nInput: {input}\nOutput: {output.0}' \
  --field Categories.0 --field Input_language.0 --field Output_language.0 --drop "Positive Examples,Negative Examples" \
  --out "$out/tags"
skillshard shard "$tasks" --tags "$out/tags" --holdout "${HOLDOUT:-0.02}" --out "$out/shards"

# The settings that the graph and the comparison share.
skills=$(IFS=, && echo "$target,${others[*]}")
training=(--skills "$skills" --target "$target" --proxy "$model" --steps "${STEPS:-600}" --batch-size "${BATCH:-4}"
  --lr "${LR:-5e-5}" --window "${WINDOW:-512}" --device "${DEVICE:-auto}" --workers "${WORKERS:-1}")

# The policies below name their files, so the names are short.
mkdir -p "$out/$experiment" && cd "$out/$experiment"

# Algorithm 2: a training on the target alone, and a training on the target with each other skill.
skillshard graph learn "$out/shards" "${training[@]}" --method brute-force --out graph.json

# The weights of a training on the target alone.
{
  printf '{"%s": 1' "$target"
  printf ', "%s": 0' "${others[@]}"
  echo "}"
} >alone.json
skillshard compare "$out/shards" "${training[@]}" --eval-every "${ROUND_STEPS:-100}" --seeds "${SEEDS:-5}" \
  --policy fixed:alone.json --policy stratified --policy skill_stratified:graph.json \
  --policy "skill_it:graph.json,eta=$eta,window=3,reduce=mean" --out compared
