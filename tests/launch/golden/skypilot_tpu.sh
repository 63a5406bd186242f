set -eu
folder=$(mktemp -d)
cat >"$folder/pretrain.yaml" <<'END'
name: pretrain
num_nodes: 1
resources:
  infra: gcp
  accelerators: tpu-v5p-512
  accelerator_args:
    runtime_version: v2-alpha-tpuv5
  use_spot: true
  image_id: docker:image:1
  job_recovery:
    max_restarts_on_errors: 0
    recover_on_exit_codes:
    - 75
envs:
  XLA_FLAGS: --a=1 --b='$HOME'
run: recursia train --config=mor:tiny '--config.eval.prompts=it'"'"'s $(odd),two' --workdir=gs://b/r
END
sky jobs launch --yes --detach-run --name=pretrain "$folder/pretrain.yaml"
rm -r "$folder"
