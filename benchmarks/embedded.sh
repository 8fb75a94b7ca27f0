#!/bin/sh
# Replaces the embedded model by a trained one, and makes again everything that depends on its weights. CONTRIBUTING.md says
# what each step writes and how long it takes.
#
#     sh benchmarks/embedded.sh RUN [STEP...]      RUN is the output of recipes/embedded.yaml, such as runs/embedded
#
# Without names of steps all run, in this order; each can be repeated alone. Evaluation, accuracy and speed resume if they
# were interrupted.
set -eu
run="$1"
shift
cd "$(dirname "$0")/.."
results=benchmarks/results
package=src/foveate/embedded
drafts=benchmarks/models/embedded

# What all measured models are asked and follow.
methods=cdpruner,corematching,covipal,dart,dart-decoder,divprune,fastervlm,fastv,globalcom2,hiprune,hired,pool,pool-decoder,pospad,ppe,prumerge,prumerge+,pyramiddrop,random-decoder,recoverable,sparsevlm,todre,token-transforming,tome,uniform,vflowopt,vflowopt-decoder,visiondrop,visionzip,vispruner,vmtc,vtc-cls
plans="cmai;corematching;prumerge;recoverable;sparsevlm;todre-decoder;vtw;zipvl"
tasks=read_word,sign,read_field,table_cell,chart_value,easy_vqa,shape_kind,shape_colour,count_shapes,shape_exists
rendered="--sides 160,320 --difficulty 0.2"
# The domain: docs/embedded-model.md.
evaluated="read_word read_line read_field snippet receipt_company receipt_date receipt_total receipt_detail sign table_cell
    document_yes_no bar_chart count_shapes shape_colour shape_kind shape_exists easy_vqa"

model() { # the folder that the training wrote, its log and its curves
    [ "$(find "$run/model" -name '*.safetensors' -size -40000k | wc -l)" -eq 1 ] || {
        echo "$run/model has no weights, or more than 40 MB of them." >&2
        exit 2
    }
    find "$run/model" -maxdepth 1 -type f -exec cp {} "$package" \;
    chmod 644 "$package"/*.*
    cp "$run/log.jsonl" "$results/embedded-training.jsonl"
    cp "$run/losses.png" "$results/embedded-training.png"
    # Rows of the former weights, with which interrupted measurements would go on.
    rm -f "$package"/evaluation.rows.jsonl "$results"/accuracy-embedded.* "$results"/speed-measure-embedded.json
}

network() { # method, folder, options: trains its weights anew
    rm -rf "$2" "$2.run"
    # shellcheck disable=SC2086
    foveate train-method "$1" -o "$2" $3 $rendered --json > build/network.json
    mv build/network.json "$results/$4.json"
    rm -rf "$2.run"
}

networks() { # CoViPAL's module in the package, and the drafts
    mkdir -p build
    network covipal "$package/covipal" "--layers 2 --steps 200" pruner-embedded
    network specvlm "$drafts/specvlm" "--steps 300" draft-embedded
    network flash "$drafts/flash" "--steps 300" draft-embedded-flash
}

evaluation() { # 500 held-out questions a task
    # shellcheck disable=SC2046
    python -m foveate.benchmark.embedded -o "$package/evaluation.json" --count 500 --easy-count 1000 --batch-size 20 \
        --difficulty 0.7 --longest 560 --least 12 $(printf -- '--task %s ' $evaluated)
    rm -f "$package/evaluation.rows.jsonl"
}

examples() { # the demonstration with the plan that the README starts with, the questions, the images of the report
    python benchmarks/examples.py --plan vispruner:25%
}

domain() { # how often `ask` warns
    python benchmarks/domain.py
}

accuracy() { # all methods at three budgets
    # shellcheck disable=SC2086
    foveate bench accuracy --models embedded --methods $methods --budgets 10%,25%,50% --plans "$plans" --tasks $tasks \
        --count 24 $rendered --threads 1 --batch-size 8 --resume -o "$results/accuracy-embedded.json"
}

speed() { # their time and memory
    foveate bench speed --models embedded --methods $methods --budgets 10%,25%,50% --plans "$plans" --repeats 21 \
        --new-tokens 8 --threads 1 --device cpu --resume -o "$results/speed-measure-embedded.json"
}

pictures() { # the figure of the README and the report with its images
    make picture
    foveate report "$results"/accuracy-embedded.json "$results"/accuracy-measure-llava.json \
        "$results"/accuracy-measure-qwen2.5-vl.json "$results"/speed-cpu-decoder.json "$results"/speed-measure-*.json \
        "$results"/trained.json \
        -o docs/results --pictures-model embedded --pictures-model benchmarks/models/measure-llava --redraw
}

pages() { # tables, plots and generated pages
    make docs
}

[ "$#" -gt 0 ] || set -- model networks evaluation examples domain accuracy speed pictures pages
for step; do
    echo "== $step" >&2
    "$step"
done
