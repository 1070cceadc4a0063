#!/usr/bin/env bash
# The whole job on a toy data set: data, training, evaluation with its control, pictures. VENV=path reuses an environment.
# Arguments go to train.py: `bash scripts/quickstart.sh --seed 2` is another run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment requirements.txt
OUT=quickstart DATA=quickstart/data CHECKPOINT=quickstart/model_best_quickstart.pth

echo "1/4 Drawing aerial scenes with sentences into $DATA"
"$PYTHON" tools/make_toy_rrsisd.py --out "$DATA" --images 3600 --size 96 --seed 0 --contents roomy

echo "2/4 Training a nano RMSIN on them (11,500 images, about 6 minutes on 2 quiet CPU cores)"
"$PYTHON" train.py --refer_data_root "$DATA" --ck_bert "$DATA/bert" --bert_tokenizer "$DATA/bert" \
    --swin_type nano --epochs 2 --batch-size 16 --lr 5e-4 --workers 0 --print-freq 25 --model_id quickstart --output-dir "$OUT" "$@"

evaluate() {
    "$PYTHON" test.py --refer_data_root "$DATA" --resume "$CHECKPOINT" --batch-size 16 --workers 0 "$@"
}
echo "3/4 Evaluating on val and test; the control gives each object another one's sentence"
for split in val test; do
    echo "-- $split"
    evaluate --split "$split" --results "$OUT/$split.json" --report "$OUT/report_$split"
    echo "-- $split, control"
    evaluate --split "$split" --shuffle_sentences --results "$OUT/${split}_shuffled.json"
done

echo "4/4 Drawing what it sees"
"$PYTHON" tools/contact_sheet.py --refer_data_root "$DATA" --resume "$CHECKPOINT" --split val --workers 0 \
    --out "$OUT/contact_sheet.png"
