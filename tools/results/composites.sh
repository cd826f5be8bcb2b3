#!/usr/bin/env bash
# Makes data/composites and data/figures, the real pixels with exact masks of docs/results.md: drawings and photographs of things,
# in six classes or all in one, pasted on photographs at 32 pixels. Fetches what they are made of (tools/data/fetch.sh).
#
#   tools/results/composites.sh [DTK]        DTK: the program, target/release/dtk if left out
set -euo pipefail
cd "$(dirname "$0")/../.."
dtk=${1:-target/release/dtk}
sets=(emoji-google emoji-twitter emoji-fluent stamps backgrounds)
tools/data/fetch.sh --require "${sets[@]}"

# What the three drawing styles and the photographs sort differently, under one name each. Left out are flags, symbols, and
# the faces among the emoji, which are alike in colour and outline whatever they express.
list=data/composites.csv
{
    echo file,class
    while read -r class folders; do
        for folder in $folders; do
            find "data/$folder" -type f \( -name '*.png' -o -name '*.webp' \) | LC_ALL=C sort | sed "s|^data/||; s|\$|,$class|"
        done
    done <<'CLASSES'
nature emoji-google/animals_nature emoji-twitter/animals_nature emoji-fluent/animals_nature stamps/animals stamps/plants
food emoji-google/food_drink emoji-twitter/food_drink emoji-fluent/food_drink stamps/food
travel emoji-google/travel_places emoji-twitter/travel_places emoji-fluent/travel_places stamps/vehicles
leisure emoji-google/activities emoji-twitter/activities emoji-fluent/activities stamps/hobbies
things emoji-google/objects emoji-twitter/objects emoji-fluent/objects stamps/household
people emoji-google/people_body emoji-twitter/people_body emoji-fluent/people_body
CLASSES
} >"$list"
compose() {
    [ -f "$2/compose.json" ] || "$dtk" data compose --cutouts "$1" --backgrounds data/backgrounds --out "$2" --train "$3" --test 1000 \
        --size 32 --objects 1-3 --scale 0.4-0.85 --rotation 20 --skip-unusable
}
compose "$list" data/composites 20000

# The same, with masks that say only what is a thing and what is ground; things and backgrounds split as before.
sed '1!s/,[^,]*$/,thing/' "$list" >data/figures.csv
compose data/figures.csv data/figures 4000
