#!/usr/bin/env bash
# Measures on one GPU, in one run of at most 8 minutes, what a machine without one cannot tell.
#   bash tools/benchmark_gpu.sh [FOLDER]             log.txt, a JSON file a step and a trace, in FOLDER (benchmark_gpu)
#   bash tools/benchmark_gpu.sh --dry-run [FOLDER]   every step with a nano network on the CPU: shows that all of them
#                                                    run, and measures nothing
# PYTHON=path names the interpreter. A step that fails, or that the time does not suffice for, is named at the end.
set -uo pipefail
DRY=""; [ "${1:-}" = --dry-run ] && { DRY=yes; shift; }
OUT="$(mkdir -p "${1:-benchmark_gpu}" && cd "${1:-benchmark_gpu}" && pwd)" || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
ROOT="$PWD" PYTHON="${PYTHON:-python}" LIMIT_S=470
why="$("$PYTHON" -c 'import torch' 2>&1)" || {
    echo "$PYTHON cannot import torch (${why##*$'\n'}): activate the environment, or name its interpreter, PYTHON=path" >&2
    exit 2
}
exec > >(tee "$OUT/log.txt") 2>&1
WRITER=$!

BASE=(--swin_type base --window12 --img_size 480 --rounds 5 --warm_up 3 --device cuda)
PRECISIONS=("--no-tf32" "--tf32" "--amp bf16") BATCHES=(8 16) EVALUATED=(1 16 32) WORKERS=8
TOY=(--images 2400 --size 96 --seed 0) LARGE=(--images 40 --size 800 --seed 0)
TRAINED=(--epochs 3 --workers "$WORKERS" --device cuda)
if [ "$DRY" ]; then
    BASE=(--swin_type nano --img_size 64 --rounds 1 --warm_up 0 --device cpu --threads 1
          --ck_bert "$OUT/toy/bert")
    PRECISIONS=("--amp bf16") BATCHES=(2) EVALUATED=(1) WORKERS=1
    TOY=(--images 20 --size 64 --seed 3) LARGE=(--images 10 --size 96 --seed 0)
    TRAINED=(--epochs 1 --img_size 64 --batch-size 8 --workers 0 --device cpu)
fi

MISSING=()
step() {  # step NAME COMMAND...
    local name="$1" left=$((LIMIT_S - SECONDS)); shift
    if [ "$left" -lt 5 ]; then MISSING+=("$name (no time left)"); return; fi
    echo; echo "== $name, after $SECONDS s"
    timeout "$left" "$@" || MISSING+=("$name (exit status $?)")
}
measure() {  # measure NAME FLAGS_AND_TASKS...
    local name="$1"; shift
    step "$name" "$PYTHON" tools/benchmark.py "$@" "${BASE[@]}" --json "$OUT/${name// /_}.json"
}
in_out() { (cd "$OUT" && "$@"); }
export -f in_out; export OUT

"$PYTHON" -c 'import torch; print("PyTorch", torch.__version__, "on", torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
step "toy set" "$PYTHON" tools/make_toy_rrsisd.py --out "$OUT/toy" "${TOY[@]}"
step "pictures of 800 px" "$PYTHON" tools/make_toy_rrsisd.py --out "$OUT/large" "${LARGE[@]}"

# Against the plain form: float32 as PyTorch has it, a loop that waits after every step, evaluation one by one.
measure "against plain" train evaluation --batch-size "${BATCHES[0]}" --no-tf32 --baseline
for batch in "${BATCHES[@]}"; do
    for precision in "${PRECISIONS[@]}"; do
        measure "training $batch $precision" train --batch-size "$batch" $precision --profile "$OUT/profile"
    done
done
for batch in "${EVALUATED[@]}"; do
    measure "evaluation $batch bf16" evaluation --batch-size "$batch" --amp bf16 --fuse
done
measure "memory with checkpoint_activations" train --batch-size "${BATCHES[0]}" --amp bf16 --checkpoint_activations
measure "LAVT" train --model lavt_one --batch-size "${BATCHES[0]}" --amp bf16
measure "loading with $WORKERS workers" loading --data "$OUT/large" --dataset rrsisd --batch-size 2 \
    --workers "$WORKERS" --ck_bert "$OUT/large/bert" --bert_tokenizer "$OUT/large/bert"

# One process of NCCL (Gloo in a dry run), compiled, in bfloat16, to the quickstart's metrics: mean IoU 62 to 69 on val.
TOY_FLAGS=(--refer_data_root "$OUT/toy" --bert_tokenizer "$OUT/toy/bert" --ck_bert "$OUT/toy/bert" --swin_type nano)
step "toy training" bash -c 'in_out "$@"' - "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node 1 \
    "$ROOT/train.py" "${TOY_FLAGS[@]}" "${TRAINED[@]}" --amp bf16 --compile --model_id toy --output-dir "$OUT"
step "toy evaluation" "$PYTHON" test.py --resume "$OUT/model_last_toy.pth" --refer_data_root "$OUT/toy" --split val \
    --batch-size 16 --workers 0 --amp bf16

# Compiling takes a minute each: last, most wanted first.
for ((number = ${#PRECISIONS[@]} - 1; number >= 0; number--)); do
    for batch in "${BATCHES[@]}"; do
        measure "training $batch ${PRECISIONS[number]} compiled" train --batch-size "$batch" ${PRECISIONS[number]} --compile
    done
done

echo; echo "== done after $SECONDS s: every time is in $OUT/log.txt"
for name in "${MISSING[@]}"; do echo "not measured: $name"; done
exec >&- 2>&-; wait "$WRITER"
[ "${#MISSING[@]}" = 0 ]
