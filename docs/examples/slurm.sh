#!/bin/sh
# Reconstruct one scan on eight machines: sbatch slurm.sh SCAN OUT
# SCAN, OUT and the work folder lie on a file system that all machines mount under the same path.
#SBATCH --job-name=tharsis --nodes=8 --ntasks-per-node=1 --cpus-per-task=32 --mem=128G --time=04:00:00
set -eu
scan=$1 out=$2
head=$PWD/head-$SLURM_JOB_ID.json        # where the scheduler and its workers find each other

srun --ntasks=1 --nodes=1 --overlap dask scheduler --scheduler-file "$head" &
srun --overlap dask worker --scheduler-file "$head" --nworkers 1 --nthreads 32 --local-directory /tmp &
until [ -s "$head" ]; do sleep 1; done

address=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$head")
tharsis reconstruct "$scan" --out "$out" --scheduler "$address"
rm -f "$head"
