set -eu
boot=$(cat <<'END'
#!/bin/bash
exec >>/var/log/pretrain.log 2>&1
for restart in $(seq 0 9); do
  docker run --rm --privileged --net=host --stop-timeout=300 \
    '--env=XLA_FLAGS=--a=1 --b='"'"'$HOME'"'"'' image:1 recursia train --config=mor:tiny \
    '--config.eval.prompts=it'"'"'s $(odd),two' --workdir=gs://b/r
  code=$?
  echo "recursia ended with $code, restart $restart of 9"
  case $code in 0|2|3|4|5) break ;; esac
  sleep 10
done
END
)
create() {
  gcloud compute tpus queued-resources create pretrain --zone=us-east5-a --node-count=2 \
    --node-prefix=pretrain --accelerator-type=v5p-512 --runtime-version=v2-alpha-tpuv5 --spot \
    --service-account=trainer --metadata-from-file=startup-script=<(printf "%s" "$boot")
}
create
restarts=0 failures=0
while [ $failures -lt 5 ]; do
  if state=$(gcloud compute tpus queued-resources describe pretrain --zone=us-east5-a \
    '--format=value(state.state)'); then failures=0; else failures=$((failures + 1)) state=; fi
  case "$state" in SUSPENDED|FAILED)
    [ $restarts -lt 9 ] || exit 1
    restarts=$((restarts + 1))
    gcloud compute tpus queued-resources delete pretrain --zone=us-east5-a --force --quiet
    create ;;
  esac
  sleep 60
done
