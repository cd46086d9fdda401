# Which parts are worth learning, and with which estimator? Each run has the same minutes of one core. Then all rules are
# measured on families that no run has seen:
#   bash examples/research/what_to_learn.sh 7 runs       # minutes, folder; each line "run" below starts a process
#   lightning-lopt compare runs/* --suite held_out --against adamw
set -u
minutes=$1 folder=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$folder"
export OMP_NUM_THREADS=1
run() {
    name=$1
    shift
    python3 "$here/examples/meta_train.py" --out "$folder/$name" --steps 100000 --minutes "$minutes" --validate-every 0 \
        --tasks image_mlp+tabular_classification+tabular_regression+categorical+teacher+least_squares --data digits \
        --meta-loss log --split both --pairs 8 --groups 2 --horizons 100 1000 --truncation 50 --threads 1 "$@" \
        >"$folder/$name.log" 2>&1 &
}
start="--start base --calibrated --orthogonalised matrix head embedding"
run start $start --learn calibration --estimator full_es --sigma 0.1 --lr 1e-9 --last 0.25 # nothing learned
run constants-full_es $start --learn constants calibration --estimator full_es --sigma 0.1 --lr 0.02 --last 0.25
run constants-pes $start --learn constants calibration --estimator pes --sigma 0.1 --lr 0.02
run constants-nres $start --learn constants calibration --estimator nres --sigma 0.1 --lr 0.02
run direction-full_es $start --learn direction --estimator full_es --sigma 0.02 --lr 0.003 --last 0.25
run direction-pes $start --learn direction --estimator pes --sigma 0.02 --lr 0.003
run controller-full_es $start --learn controller --estimator full_es --sigma 0.02 --lr 0.003 --last 0.25
run controller-pes $start --learn controller --estimator pes --sigma 0.02 --lr 0.003
run both-pes $start --learn direction controller --estimator pes --sigma 0.02 --lr 0.003
run both-nres $start --learn direction controller --estimator nres --sigma 0.02 --lr 0.003
run plain-direction-pes --start base --calibrated --orthogonalised --learn direction --estimator pes --sigma 0.02 --lr 0.003
run scratch-pes --rule celo2 --estimator pes --sigma 0.01 --lr 0.001
wait
grep -h exported "$folder"/*.log
