set -eu
boot=$(cat <<'END'
#!/bin/bash
exec >>/var/log/pretrain.log 2>&1
export XLA_FLAGS='--a=1 --b='"'"'$HOME'"'"''
for restart in $(seq 0 9); do
  /env/bin/recursia train --config=mor:tiny '--config.eval.prompts=it'"'"'s $(odd),two' \
    --workdir=gs://b/r
  code=$?
  echo "recursia ended with $code, restart $restart of 9"
  case $code in 0|2|3|4|5) break ;; esac
  sleep 10
done
END
)
create() {
  gcloud compute tpus queued-resources create pretrain --zone=us-east5-a --project=p \
    --node-id=pretrain --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e \
    --metadata-from-file=startup-script=<(printf "%s" "$boot")
}
create
