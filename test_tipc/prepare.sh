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
field model 2 model_name
field python 3 python
check_name
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

mkdir -p $DATA
rm -rf $DATA/train $DATA/val $DATA/noisy $DATA/clean $DATA/prepared $DATA/making.*
case $MODE in
    whole_train_*)
        folder=${TIPC_DATA:-./Imagenet_val}
        [ -d "$folder" ] || die "$MODE: $folder does not exist; TIPC_DATA names the folder of training images"
        ln -s "$(realpath "$folder")" $DATA/train
        ln -s "$(realpath validation)" $DATA/val
        ;;
    *)
        lite_pictures
        ln -s lite $DATA/train
        mkdir $DATA/val
        ln -s "$(realpath validation/Sample)" $DATA/val/Sample
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
