kubectl apply --namespace=default --filename=- <<'END'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: lr-cdcfc2ea
  namespace: default
  labels:
    kueue.x-k8s.io/queue-name: tpus
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 100
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
        parallelism: 1
        completions: 1
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
              cloud.google.com/gke-tpu-topology: 1x1
            containers:
            - name: train
              image: image:1
              command:
              - recursia
              - train
              - --config=vanilla:tiny
              - --config.eval.prompts=["it's $$(odd)"]
              - --config.train.seed=0
              - --workdir=/shared/sweeps/lr/trials/c51c939cc96b
              resources:
                requests:
                  google.com/tpu: 1
                limits:
                  google.com/tpu: 1
              env:
              - name: XLA_FLAGS
                value: --a=1
              volumeMounts:
              - name: shared
                mountPath: /shared
            volumes:
            - name: shared
              persistentVolumeClaim:
                claimName: claim
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
END
kubectl apply --namespace=default --filename=- <<'END'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: lr-ef0fd2ab
  namespace: default
  labels:
    kueue.x-k8s.io/queue-name: tpus
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 100
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
        parallelism: 1
        completions: 1
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
              cloud.google.com/gke-tpu-topology: 1x1
            containers:
            - name: train
              image: image:1
              command:
              - recursia
              - train
              - --config=vanilla:tiny
              - --config.eval.prompts=["it's $$(odd)"]
              - --config.train.seed=1
              - --workdir=/shared/sweeps/lr/trials/5de5b384c116
              resources:
                requests:
                  google.com/tpu: 1
                limits:
                  google.com/tpu: 1
              env:
              - name: XLA_FLAGS
                value: --a=1
              volumeMounts:
              - name: shared
                mountPath: /shared
            volumes:
            - name: shared
              persistentVolumeClaim:
                claimName: claim
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
END
