kubectl apply --namespace=team --filename=- <<'END'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: pretrain
  namespace: team
  labels:
    kueue.x-k8s.io/queue-name: gpus
  annotations: {}
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
        parallelism: 2
        completions: 2
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
              cloud.google.com/gke-accelerator: nvidia-h100-80gb
            containers:
            - name: train
              image: image:1
              command:
              - recursia
              - train
              - --config=mor:tiny
              - --config.eval.prompts=it's $$(odd),two
              - --workdir=gs://b/r
              - --coordinator=pretrain-host-0-0.pretrain:8476
              - --num_processes=2
              - --process_id=$(JOB_COMPLETION_INDEX)
              resources:
                requests:
                  nvidia.com/gpu: 8
                limits:
                  nvidia.com/gpu: 8
              env:
              - name: XLA_FLAGS
                value: --a=1 --b='$HOME'
              volumeMounts:
              - name: shared
                mountPath: /shared
            serviceAccountName: trainer
            volumes:
            - name: shared
              persistentVolumeClaim:
                claimName: claim
            tolerations:
            - key: nvidia.com/gpu
              operator: Exists
END
