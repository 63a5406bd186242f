# The same through XPK: xpk workload create --cluster=pod --workload=pretrain --tpu-type=v5litepod-256 --num-slices=1 --docker-image=image:1 '--command=recursia train --config=mor:tiny '"'"'--config.eval.prompts=it'"'"'"'"'"'"'"'"'s $(odd),two'"'"' --workdir=gs://b/r' '--env=XLA_FLAGS=--a=1 --b='"'"'$HOME'"'"'' --max-restarts=9 --restart-on-exit-codes=75 --termination-grace-period-seconds=300
kubectl apply --namespace=default --filename=- <<'END'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: pretrain
  namespace: default
  labels:
    kueue.x-k8s.io/queue-name: tpus
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 9
    rules:
    - name: settled
      action: FailJobSet
      onJobFailureReasons:
      - PodFailurePolicy
  replicatedJobs:
  - name: host
    replicas: 1
    template:
      spec:
        parallelism: 64
        completions: 64
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              operator: In
              values:
              - 2
              - 3
              - 4
              - 5
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: tpu-v5-lite-podslice
              cloud.google.com/gke-tpu-topology: 16x16
              cloud.google.com/gke-spot: 'true'
            containers:
            - name: train
              image: image:1
              command:
              - recursia
              - train
              - --config=mor:tiny
              - --config.eval.prompts=it's $$(odd),two
              - --workdir=gs://b/r
              resources:
                requests:
                  google.com/tpu: 4
                limits:
                  google.com/tpu: 4
              env:
              - name: XLA_FLAGS
                value: --a=1 --b='$HOME'
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
        activeDeadlineSeconds: 3600
END
