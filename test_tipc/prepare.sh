#!/usr/bin/env bash
# Lays out the pictures, and the exported model, that a chain of this mode works on, under test_tipc/data.
#
#   bash test_tipc/prepare.sh test_tipc/configs/N2N/train_infer_python.txt 'lite_train_lite_infer'
#
# Nothing is downloaded. whole_train_* trains on the folder that TIPC_DATA names, ./Imagenet_val unless set.
# shellcheck source-path=SCRIPTDIR source=common_func.sh
source "$(dirname "${BASH_SOURCE[0]}")/common_func.sh"
open_config "${1-}" "${2-}" lite_train_lite_infer lite_train_whole_infer whole_train_whole_infer whole_infer \
    benchmark_train paddle2onnx_infer serving_infer cpp_infer lite_infer
model_and_python
interpreter
DATA=test_tipc/data

# lite_pictures: sixteen clean pictures of 256 pixels from scikit-image's wheel, made once.
lite_pictures() {
    [ ! -d $DATA/lite ] || return 0
    local work path
    work=$(mktemp -d "$DATA/making.XXXX")
    "$PYTHON" scripts/sample_images.py train "$work/raw"
    "$PYTHON" dataset_tool.py --input_dir "$work/raw" --save_dir "$work/crops" --crop 256
    mkdir "$work/lite"
    # Every second one, so that each source has its share.
    local -a paths=("$work"/crops/*.png)
    for path in {0..15}; do cp "${paths[path * 2]}" "$work/lite"; done
    mv "$work/lite" $DATA/lite
    rm -r "$work"
}

# pictures NAMES...: the stored noisy pictures of these names and their clean ones.
pictures() {
    mkdir $DATA/noisy $DATA/clean
    local name
    for name; do
        cp test_tipc/inputs/noisy/"$name" $DATA/noisy
        cp test_tipc/inputs/clean/"$name" $DATA/clean
    done
}

# lite_pairs: 256 pairs of patches of these for Lite, and 64 of others to score on, made once.
lite_pairs() {
    lite_pictures
    [ ! -d $DATA/pairs ] || return 0
    local work
    work=$(mktemp -d "$DATA/making.XXXX")
    "$PYTHON" dataset_tool.py --input_dir $DATA/lite --val_dir validation/Sample --save_dir "$work/pairs" --pairs 256 \
        --val_pairs 64 --noise gauss25
    mv "$work/pairs" $DATA/pairs
    rm -r "$work"
}

# lite_renders: a dozen made-up renders for MonteCarlo, made once.
lite_renders() {
    [ ! -d $DATA/renders ] || return 0
    local work
    work=$(mktemp -d "$DATA/making.XXXX")
    "$PYTHON" test_tipc/make_renders.py --train "$work/renders"
    mv "$work/renders" $DATA/renders
    rm -r "$work"
}

# link SOURCE NAME
link() {
    [ -e "$1" ] || die "$MODE: $1 does not exist${WHOLE_HOLDS:+; TIPC_DATA names the folder $WHOLE_HOLDS}"
    mkdir -p "$(dirname "$DATA/$2")"
    ln -s "$(realpath "$1")" "$DATA/$2"
}

mkdir -p $DATA
rm -rf $DATA/train $DATA/val $DATA/noisy $DATA/clean $DATA/prepared $DATA/making.*
WHOLE=${TIPC_DATA:-./Imagenet_val} WHOLE_HOLDS=''
case $MODEL:$MODE in
    MonteCarlo:whole_train_*)
        WHOLE_HOLDS="that tools/render_dataset.py has written"
        link "$WHOLE/train" train
        link "$WHOLE/valid" val
        ;;
    MonteCarlo:*)
        lite_renders
        link $DATA/renders train
        link test_tipc/inputs/renders val
        ;;
    Lite:whole_train_*)
        WHOLE_HOLDS="that dataset_tool.py --pairs has written"
        link "$WHOLE/train.npz" train/train.npz
        link "$WHOLE/val.npz" val/val.npz
        ;;
    Lite:*)
        lite_pairs
        link $DATA/pairs/train.npz train/train.npz
        link $DATA/pairs/val.npz val/val.npz
        ;;
    *:whole_train_*)
        WHOLE_HOLDS="of training images"
        link "$WHOLE" train
        link validation val
        ;;
    *)
        lite_pictures
        link $DATA/lite train
        link validation/Sample val/Sample
        ;;
esac
case $MODE in
    *lite_infer) pictures coffee_cup.png astronaut_suit.png chelsea_float.npy ;;
    *)
        all=(test_tipc/inputs/noisy/*)
        pictures "${all[@]##*/}"
        ;;
esac
echo "$MODEL $MODE" >$DATA/prepared
echo "prepared: $MODEL, $MODE"
