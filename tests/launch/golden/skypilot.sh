set -eu
folder=$(mktemp -d)
cat >"$folder/pretrain.yaml" <<'END'
name: pretrain
num_nodes: 2
resources:
  accelerators: H100:8
  job_recovery:
    max_restarts_on_errors: 0
    recover_on_exit_codes:
    - 75
envs:
  XLA_FLAGS: --a=1 --b='$HOME'
setup: pip install recursia
run: recursia train --config=mor:tiny '--config.eval.prompts=it'"'"'s $(odd),two' --workdir=gs://b/r --coordinator="$(head -n1 <<<"$SKYPILOT_NODE_IPS"):8476" --num_processes=2 --process_id="$SKYPILOT_NODE_RANK"
END
sky jobs launch --yes --detach-run --name=pretrain "$folder/pretrain.yaml"
rm -r "$folder"
