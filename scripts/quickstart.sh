#!/usr/bin/env bash
# The whole job on a toy data set: data, training, evaluation with its control, pictures. VENV=path reuses an environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment requirements.txt
OUT=quickstart DATA=quickstart/data CHECKPOINT=quickstart/model_best_quickstart.pth

echo "1/4 Drawing aerial scenes with sentences into $DATA"
"$PYTHON" tools/make_toy_rrsisd.py --out "$DATA" --images 1500 --size 96 --seed 0

echo "2/4 Training a nano RMSIN on them (about 6 minutes on 2 CPU cores)"
"$PYTHON" train.py --refer_data_root "$DATA" --ck_bert "$DATA/bert" --bert_tokenizer "$DATA/bert" \
    --swin_type nano --img_size 96 --batch-size 16 --lr 5e-4 --warmup_iters 50 --epochs 3 \
    --random_box_share 0 --train_embeddings --workers 0 --print-freq 25 --model_id quickstart --output-dir "$OUT"

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
